"""The header of a reconstructed image: the only place that edits one.

A reconstruction says what it is (PS3.3 C.7.6.1.1.2, C.7.6.1.1.5, C.12.4): DERIVED, lossy, by which method and ratio,
from which source, with a private block that proves it. Everything the modality wrote stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID
from pydicom.valuerep import DSfloat

from node.archive.amended import NOT_OF_THIS_HEADER, amend, drop
from node.archive.policy import PRIVATE_CREATOR, PRIVATE_GROUP
from storage.dicomfile import quiet
from storage.payload import Base, Rendition
from storage.records import Applied

PRIVATE_ATTRIBUTES = {
    0x01: ("LO", "Codec: rung of the base"),
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
}
"""The private block (0099,xx01 ff.) of creator LATENT_PACS 1; docs/CONFORMANCE.md lists it for readers."""


def derived_header(
    base: Base,
    rendition: Rendition,
    payload_bytes: int,
    verified_at: datetime,
    applied: Sequence[Applied] = (),
) -> Dataset:
    """The header, without pixel data, of what ``rendition`` makes of ``base``; ``verified_at`` is in UTC.

    ``applied``: the amendments of the image's study.
    """
    with quiet():
        header = base.header.dataset()
        amend(header, applied)
        ratio = base.rows * base.columns * 2 / payload_bytes
        _identify(header, rendition)
        _declare_lossy(header, rendition, ratio)
        _describe(header, base, rendition, ratio)
        _point_to_source(header, rendition)
        _credit_equipment(header, verified_at)
        _private_block(header, base, rendition)
        _pixel_range(header, rendition)
        drop(header, NOT_OF_THIS_HEADER)
    return header


def _identify(header: Dataset, rendition: Rendition) -> None:
    image_type = list(_values(header, "ImageType"))
    # Image Type is type 3 in some IODs; where it is absent the two values that lossy derivation implies are written
    header.ImageType = ["DERIVED", *image_type[1:]] if image_type else ["DERIVED", "PRIMARY"]
    header.SOPInstanceUID = UID(rendition.derived_uid)


def _declare_lossy(header: Dataset, rendition: Rendition, ratio: float) -> None:
    header.LossyImageCompression = "01"
    ratios = [*_values(header, "LossyImageCompressionRatio")]
    methods = [*_values(header, "LossyImageCompressionMethod")]
    while len(methods) < len(ratios):  # same count as Ratio (C.7.6.1.1.5.2), also where the source was careless
        methods.append("UNKNOWN")
    ratios += ["1"] * (len(methods) - len(ratios))
    header.LossyImageCompressionRatio = [*ratios, DSfloat(round(ratio, 2))]
    header.LossyImageCompressionMethod = [*methods, rendition.method]


def _describe(header: Dataset, base: Base, rendition: Rendition, ratio: float) -> None:
    own = (
        f"Latent PACS reconstruction: {base.rung}, {ratio:.0f}:1, upscaler {rendition.upscaler}; "
        f"measured PSNR {rendition.verdict.psnr_db:.1f} dB, tile FSIM {rendition.verdict.fsim_mean:.3f}; "
        "not for primary interpretation"
    )
    before = str(header.get("DerivationDescription", "") or "")
    room = 1024 - len(own) - 2  # ST holds 1024 characters (PS3.5 6.2)
    header.DerivationDescription = f"{before[:room]}; {own}" if before else own
    codes = Items(deepcopy(list(header.get("DerivationCodeSequence") or [])))
    codes += [_code("113040", "DCM", "Lossy Compression"), _code("113085", "DCM", "Spatial resampling")]
    header.DerivationCodeSequence = codes
    if rendition.generative:
        header.add_new(0x0008001C, "CS", "YES")


def _point_to_source(header: Dataset, rendition: Rendition) -> None:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = UID(rendition.original_uid)
    item.PurposeOfReferenceCodeSequence = Items([_code("121320", "DCM", "Uncompressed predecessor")])
    header.SourceImageSequence = Items([*(header.get("SourceImageSequence") or []), item])


def _credit_equipment(header: Dataset, verified_at: datetime) -> None:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Items([_code("109100", "DCM", "Synthesizing Equipment")])
    item.Manufacturer = "Latent PACS"
    item.ManufacturerModelName = "latent-pacs"
    item.SoftwareVersions = _product_version()
    item.ContributionDateTime = verified_at.strftime("%Y%m%d%H%M%S.%f") + "+0000"
    header.ContributingEquipmentSequence = Items([*(header.get("ContributingEquipmentSequence") or []), item])


def _private_block(header: Dataset, base: Base, rendition: Rendition) -> None:
    block = header.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    verdict = rendition.verdict
    values = {
        0x01: str(base.rung),
        0x02: rendition.upscaler,
        0x03: rendition.weights_digest,
        0x04: rendition.seed,
        0x05: rendition.steps,
        0x06: rendition.original_uid,
        0x07: base.pixel_digest,
        0x08: rendition.base_digest,
        0x09: rendition.output_digest,
        0x0A: verdict.psnr_db,
        0x0B: verdict.fsim_mean,
        0x0C: verdict.fsim_p5,
        0x0D: "PASSED" if verdict.passed else "MEASURED",
        0x0E: rendition.postprocessing,
    }
    for offset, (vr, _) in PRIVATE_ATTRIBUTES.items():
        block.add_new(offset, vr, values[offset])


def _pixel_range(header: Dataset, rendition: Rendition) -> None:
    """The reconstruction's own extremes, stated only where the source stated its own."""
    for keyword, name in (("SmallestImagePixelValue", "minimum"), ("LargestImagePixelValue", "maximum")):
        if keyword in header:
            header[keyword].value = rendition.extra[name]


def _values(header: Dataset, keyword: str) -> list[str]:
    value = header.get(keyword)
    if value in (None, ""):
        return []
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return [str(value)]
    return [str(part) for part in value]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _product_version() -> str:
    try:
        return version("latent-pacs")
    except PackageNotFoundError:
        return "unknown"
