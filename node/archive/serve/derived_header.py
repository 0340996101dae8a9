"""The header of a reconstructed image; no other module edits it.

It declares the reconstruction (PS3.3 C.7.6.1.1.2, C.7.6.1.1.5, C.12.4): DERIVED and lossy, with method, ratio and
source, and a private block with digests and figures. All other attributes of the modality are kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import DSfloat

from node.archive.intake.eligibility import PRIVATE_CREATOR, PRIVATE_GROUP
from node.archive.serve.amended_header import CREATION, NOT_OF_THIS_HEADER, amend, drop
from node.archive.serve.carried_header import removal_note, remove_uncarriable
from storage.dicom.elements import BadValueError, append_item, checked, codecs_of, values_of
from storage.errors import NotReconstructable
from storage.formats.payload import Base, Rendition, structure_uid
from storage.records import Applied, Verdict

PRIVATE_ATTRIBUTES = {
    0x01: ("LO", "Codec: operating point of the base"),
    0x02: ("LO", "Upscaler"),
    0x03: ("LO", "SHA-256 of the upscaler's weights"),
    0x04: ("UL", "Seed"),
    0x05: ("US", "Sampling steps"),
    0x06: ("UI", "SOP Instance UID of the original"),
    0x07: ("LO", "SHA-256 of the original's pixels, little endian"),
    0x08: ("LO", "SHA-256 of the base"),
    0x09: ("LO", "SHA-256 of this object's pixels, little endian"),
    0x0A: ("FD", "Measured PSNR against the original, dB, over breast tiles"),
    0x0B: ("FD", "Measured tile FSIM against the original, mean"),
    0x0C: ("FD", "Measured tile FSIM against the original, 5th percentile"),
    0x0D: ("CS", "Gate: PASSED, or MEASURED where profile paper did not gate"),
    0x0E: ("LO", "Post-processing version"),
    0x0F: ("CS", "Texture: DRAWN, or NONE where this is the structure alone"),
    0x10: ("UI", "SOP Instance UID of the same reconstruction with the other texture"),
}
"""The private block (0099,xx01 ff.) of creator LATENT_PACS 1; docs/CONFORMANCE.md lists it for readers."""

_DRAWN = "noise is synthetic, drawn with the spectrum of the original's; structure is the original's to within noise"
_STRUCTURE_ONLY = "structure alone, the original's to within its noise; fine noise is left out and none was drawn"
_LONGEST_ST, _LONGEST_LT = 1024, 10240
"""Most characters of values of VRs ST and LT (PS3.5 6.2)."""
_METHOD = re.compile(r"[ -\[\]-~]{1,16}")
"""A value of VR CS, except that lower case is accepted: printable ASCII without backslash, 1 to 16 characters."""
_TEXTS = {"CS", "DS", "IS", "LO", "LT", "SH", "ST", "UC", "UN", "UT"}
"""VRs in which an attribute of text may have been received."""


def derived_header(
    base: Base,
    rendition: Rendition,
    payload_bytes: int,
    verified_at: datetime,
    applied: Sequence[Applied] = (),
    *,
    draw: bool = True,
) -> Dataset:
    """The header of a rendition, without pixel data; ``verified_at`` is in UTC.

    ``applied``: the amendments of the image's study. ``draw``: whether the object has drawn noise, or is the
    structure alone.
    """
    header = base.header.dataset()
    notes = [removal_note(remove_uncarriable(header))]
    amend(header, applied)
    ratio = base.rows * base.columns * 2 / payload_bytes
    _identify(header, rendition, draw)
    notes += _declare_lossy(header, rendition, ratio)
    _describe(header, base, rendition, ratio, [note for note in notes if note], draw)
    _comment(header, draw)
    _reference_source(header, rendition)
    _add_equipment(header, verified_at, synthetic=draw or rendition.generative)
    _private_block(header, base, rendition, draw)
    _pixel_range(header, rendition, draw)
    drop(header, (*NOT_OF_THIS_HEADER, *CREATION))
    return header


def _identify(header: Dataset, rendition: Rendition, draw: bool) -> None:
    image_type = _values(header, "ImageType")
    # Image Type is type 3 in some IODs; if it is absent, the two values that lossy derivation implies are written
    _set(header, "ImageType", ["DERIVED", *image_type[1:]] if image_type else ["DERIVED", "PRIMARY"])
    _set(header, "SOPInstanceUID", UID(rendition.derived_uid if draw else rendition.structure_uid))


def _declare_lossy(header: Dataset, rendition: Rendition, ratio: float) -> list[str]:
    """Append to the ratios and methods of the source. Returns notes on invalid ones, which are not copied."""
    _set(header, "LossyImageCompression", "01")
    notes = []
    ratios, methods = _values(header, "LossyImageCompressionRatio"), _values(header, "LossyImageCompressionMethod")
    if any(not _METHOD.fullmatch(method) for method in methods):
        methods = [method if _METHOD.fullmatch(method) else "UNKNOWN" for method in methods]
        notes.append("an invalid Lossy Image Compression Method of the source was replaced by UNKNOWN")
    while len(methods) < len(ratios):  # as many as ratios (C.7.6.1.1.5.2), also if the source has fewer
        methods.append("UNKNOWN")
    ratios += ["1"] * (len(methods) - len(ratios))
    known = [pair for pair in zip(ratios, methods, strict=True) if _is_decimal(pair[0])]
    if len(known) < len(ratios):
        lost = ", ".join(method for one, method in zip(ratios, methods, strict=True) if not _is_decimal(one))
        notes.append(
            f"a Lossy Image Compression Ratio of the source that is not a number was left out, with method {lost}"
        )
    _set(header, "LossyImageCompressionRatio", [*(one for one, _ in known), str(DSfloat(round(ratio, 2)))])
    _set(header, "LossyImageCompressionMethod", [*(method for _, method in known), rendition.method])
    return notes


def _describe(
    header: Dataset, base: Base, rendition: Rendition, ratio: float, notes: Sequence[str], draw: bool
) -> None:
    psnr, fsim, _ = _figures(rendition.verdict, draw)
    own = (
        f"Latent PACS reconstruction: {base.point}, {ratio:.0f}:1, upscaler {rendition.upscaler}; "
        f"{_DRAWN if draw else _STRUCTURE_ONLY}; measured PSNR {psnr:.1f} dB, tile FSIM {fsim:.3f}; "
        "not for primary interpretation"
    )
    if rendition.measured_uid:
        measured = rendition.measured_uid if draw else structure_uid(rendition.measured_uid)
        notes = [*notes, f"figures of {measured}, from which these pixels differ by rounding"]
    own = "; ".join([own, *notes])[:_LONGEST_ST]
    _append_text(header, "DerivationDescription", own, _LONGEST_ST)
    append_item(header, "DerivationCodeSequence", _code("113040", "DCM", "Lossy Compression"))
    if base.point.scale > 1:
        append_item(header, "DerivationCodeSequence", _code("113085", "DCM", "Spatial resampling"))
    if draw or rendition.generative:
        header.add_new(0x0008001C, "CS", "YES")


def _comment(header: Dataset, draw: bool) -> None:
    """Append to Image Comments (C.7.6.1), which plain viewers show."""
    own = f"Reconstructed by Latent PACS from a lossy payload: {_DRAWN if draw else _STRUCTURE_ONLY}"
    _append_text(header, "ImageComments", own, _LONGEST_LT)


def _append_text(header: Dataset, keyword: str, own: str, longest: int) -> None:
    """Append ASCII to a text of at most ``longest`` characters.

    The received bytes are copied, since their character set may be undeclared. If they contain escape sequences, one
    that switches back to ASCII follows them (PS3.5 6.1.2.5.3). They are decoded only if they must be cut.
    """
    tag, vr = BaseTag(tag_for_keyword(keyword) or 0), dictionary_VR(keyword)
    element: Any = header.get_item(tag, keep_deferred=True)
    if isinstance(element, RawDataElement) and (element.VR or vr) in _TEXTS:
        received = (element.value or b"").rstrip(b"\0 ")
        if received and len(received) + len(own) + 2 <= longest:
            received += b"\x1b(B" * (b"\x1b" in received)
            header[tag] = DataElement(tag, vr, received + f"; {own}".encode(), already_converted=True)
            return
    before = "\\".join(_values(header, keyword))[: max(longest - len(own) - 2, 0)]
    _set(header, keyword, f"{before}; {own}" if before else own)


def _figures(verdict: Verdict, draw: bool) -> tuple[float, float, float]:
    """PSNR in dB, mean FSIM and its 5th percentile of the object that is sent."""
    if draw:
        return verdict.psnr_db, verdict.fsim_mean, verdict.fsim_p5
    named = verdict.figures
    return named["structure_psnr_db"], named["structure_fsim_mean"], named["structure_fsim_p5"]


def _reference_source(header: Dataset, rendition: Rendition) -> None:
    item = Dataset()
    item.ReferencedSOPClassUID = UID(str(header.SOPClassUID))
    item.ReferencedSOPInstanceUID = UID(rendition.original_uid)
    item.PurposeOfReferenceCodeSequence = Items([_code("121320", "DCM", "Uncompressed predecessor")])
    item.SpatialLocationsPreserved = "YES"  # so that displays show marks on the original at the same places
    append_item(header, "SourceImageSequence", item)


def _add_equipment(header: Dataset, verified_at: datetime, *, synthetic: bool) -> None:
    item = Dataset()
    purpose = ("109100", "DCM", "Synthesizing Equipment") if synthetic else ("109102", "DCM", "Processing Equipment")
    item.PurposeOfReferenceCodeSequence = Items([_code(*purpose)])
    item.Manufacturer = "Latent PACS"
    item.ManufacturerModelName = "latent-pacs"
    item.SoftwareVersions = _product_version()
    item.ContributionDateTime = verified_at.strftime("%Y%m%d%H%M%S.%f") + "+0000"
    append_item(header, "ContributingEquipmentSequence", item)


def _private_block(header: Dataset, base: Base, rendition: Rendition, draw: bool) -> None:
    block = _free_block(header)
    header.add_new(PRIVATE_GROUP << 16 | block, "LO", PRIVATE_CREATOR)
    psnr, fsim, fsim_p5 = _figures(rendition.verdict, draw)
    values = {
        0x01: str(base.point),
        0x02: rendition.upscaler,
        0x03: rendition.weights_digest,
        0x04: rendition.seed,
        0x05: rendition.steps,
        0x06: rendition.original_uid,
        0x07: base.pixel_digest,
        0x08: rendition.base_digest,
        0x09: rendition.output_digest if draw else rendition.structure_digest,
        0x0A: psnr,
        0x0B: fsim,
        0x0C: fsim_p5,
        0x0D: "PASSED" if rendition.verdict.passed else "MEASURED",
        0x0E: rendition.postprocessing,
        0x0F: "DRAWN" if draw else "NONE",
        0x10: UID(rendition.structure_uid if draw else rendition.derived_uid),
    }
    for offset, (vr, _) in PRIVATE_ATTRIBUTES.items():
        header.add_new(PRIVATE_GROUP << 16 | block << 8 | offset, vr, values[offset])


_OF_SOURCE_PIXELS = (0x00280108, 0x00280109, 0x00603000, 0x01000410, 0x01000420, 0x01000424, 0x01000426)
"""Smallest and Largest Pixel Value in Series, Histogram Sequence (PS3.3 C.11.5), and SOP Instance Status with its date,
comment and equipment: only the source was authorized (C.12.1)."""


def _free_block(header: Dataset) -> int:
    """The first block of the private group that has neither a creator nor elements. Raises NotReconstructable."""
    taken = {tag.element >> 8 or tag.element for tag in header.keys() if tag.group == PRIVATE_GROUP}  # noqa: SIM118
    free = next((block for block in range(0x10, 0x100) if block not in taken), None)
    if free is None:
        raise NotReconstructable(
            f"all private blocks of group {PRIVATE_GROUP:04X} are taken, and a reconstruction needs one"
        )
    return free


def _pixel_range(header: Dataset, rendition: Rendition, draw: bool) -> None:
    """Replace the smallest and largest pixel value, if the source has them, and remove ``_OF_SOURCE_PIXELS``."""
    drop(header, _OF_SOURCE_PIXELS)
    for keyword, name in (("SmallestImagePixelValue", "minimum"), ("LargestImagePixelValue", "maximum")):
        if keyword in header:
            header.add_new(keyword, "US", rendition.extra[name][0 if draw else 1])


def _values(header: Dataset, keyword: str) -> list[str]:
    """The values of a text attribute, unchanged; none if its VR is not a text VR, or it is unreadable."""
    vr, tag = dictionary_VR(keyword), BaseTag(tag_for_keyword(keyword) or 0)
    element = header.get_item(tag)
    if element is None or (element.VR or vr) not in _TEXTS:
        return []
    try:
        values = [str(value) for value in values_of(header, tag, vr, codecs_of(header))]
    except Exception:  # noqa: BLE001 - pydicom raises many kinds on hostile values
        return []
    return values if any(values) else []  # an empty one among others keeps its place


def _set(header: Dataset, keyword: str, value: object) -> None:
    """Set an attribute with its standard VR, whatever VR the source had."""
    header.add_new(keyword, dictionary_VR(keyword), value)


def _is_decimal(text: str) -> bool:
    """Whether a text is a valid value of VR DS, which has at most 16 characters (PS3.5 6.2)."""
    try:
        checked(text, "DS")
    except BadValueError:
        return False
    return len(text) <= 16


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _product_version() -> str:
    try:
        return version("latent-pacs")
    except PackageNotFoundError:
        return "unknown"
