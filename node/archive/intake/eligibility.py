"""The allow-list of images that may be reconstructed. Everything else is stored and returned bit-exact.

Only the header is checked here; node/codec/encode/source_image.py checks the pixels (stray bits, only padding). The
first rule that an image breaks gives the reason, a ``storage.records.ReasonCode``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydicom import Dataset

from node.config import EligibilitySettings
from storage.dicom.dicomfile import DataSetFile
from storage.dicom.elements import readable
from storage.dicom.encapsulate import LOSSY_SYNTAXES
from storage.dicom.pixels import PixelShape
from storage.records import ReasonCode

MIN_SIDE = 256
"""Fewest rows and fewest columns of an image, in pixels: the gate measures tiles of this size."""
PRIVATE_GROUP = 0x0099
PRIVATE_CREATOR = "LATENT_PACS 1"
"""Creator of the private block of every reconstruction (node/archive/serve/derived_header.py)."""

_SPECIAL_VIEWS = {
    "399163009": ReasonCode.MAGNIFICATION_VIEW,
    "R-102D6": ReasonCode.MAGNIFICATION_VIEW,
    "399055006": ReasonCode.SPOT_VIEW,
    "R-102D7": ReasonCode.SPOT_VIEW,
    "127457009": ReasonCode.SPECIMEN,
    "G-8310": ReasonCode.SPECIMEN,
}
"""Codes of PS3.16 CID 4014 and CID 4015 (SNOMED CT, and SRT, which older devices write)."""

_NUMBER = re.compile(r"\d+([.,]\d+)?")
"""The first number in a text that should be a DS, but may have a decimal comma or a unit."""
_MAX_MAGNIFICATION = 1.2
"""Largest Estimated Radiographic Magnification Factor of a contact view. It is typically 1.0 to 1.1 there, and at least
1.5 in a magnification view. Chosen, not measured."""


def why_exact(file: DataSetFile, header: Dataset, settings: EligibilitySettings) -> ReasonCode:
    """Why this object may only be kept bit-exact; ReasonCode.NONE if it may be reconstructed."""
    if not _class_allowed(header, settings):
        return ReasonCode.SOP_CLASS
    return next(_objections(file, header), ReasonCode.NONE)


def _class_allowed(header: Dataset, settings: EligibilitySettings) -> bool:
    sop_class, modality = str(header.get("SOPClassUID", "")), str(readable(header, "Modality") or "")
    return any(allowed.sop_class == sop_class and allowed.modality in ("", modality) for allowed in settings.classes)


def _objections(file: DataSetFile, header: Dataset) -> Iterator[ReasonCode]:
    if not _is_pixel_data(file):
        yield ReasonCode.NO_PIXELS
    yield from _shape_objections(PixelShape.of(header), header)
    if file.has_large_sequences():  # they would be parsed, in the node's own process, whenever the image is served
        yield ReasonCode.LARGE_SEQUENCES
    if str(file.transfer_syntax) in LOSSY_SYNTAXES or _terms(header, "LossyImageCompression") - {"", "00"}:
        yield ReasonCode.LOSSY
    if not file.transfer_syntax.is_little_endian:
        yield ReasonCode.BIG_ENDIAN
    if any(tag in header for tag in (0xFFFAFFFA, 0x4FFE0001)):
        yield ReasonCode.SIGNATURE
    if any(str(creator).strip() == PRIVATE_CREATOR for creator in header.private_creators(PRIVATE_GROUP)):
        yield ReasonCode.OURS
    if "YES" in _terms(header, "BurnedInAnnotation"):
        yield ReasonCode.BURNED_IN
    if "YES" in _terms(header, "QualityControlImage") | _terms(header, "QualityControlSubject"):
        yield ReasonCode.QUALITY_CONTROL
    if "FOR PROCESSING" in _terms(header, "PresentationIntentType"):
        yield ReasonCode.FOR_PROCESSING
    yield from _view_objections(header)


def _is_pixel_data(file: DataSetFile) -> bool:
    """Pixel Data (7FE0,0010) rather than one of the float forms, in either byte order."""
    tag = bytes(file.data[file.layout.pixel_start : file.layout.pixel_start + 4])
    return file.layout.has_pixels and tag in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")


def _shape_objections(shape: PixelShape, header: Dataset) -> Iterator[ReasonCode]:
    if "NumberOfFrames" in header and (shape.frames != 1 or readable(header, "NumberOfFrames") not in (None, "", 1)):
        yield ReasonCode.MULTI_FRAME
    if shape.samples != 1 or shape.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        yield ReasonCode.PHOTOMETRIC
    if shape.bits_allocated != 16:
        yield ReasonCode.BITS_ALLOCATED
    if not 8 <= shape.bits_stored <= 16:
        yield ReasonCode.BITS_STORED
    if shape.high_bit != shape.bits_stored - 1:
        yield ReasonCode.HIGH_BIT
    if shape.signed or readable(header, "PixelRepresentation") not in (None, "", 0):
        yield ReasonCode.SIGNED_PIXELS
    if min(shape.rows, shape.columns) < MIN_SIDE:
        yield ReasonCode.SMALL


def _view_objections(header: Dataset) -> Iterator[ReasonCode]:
    for view in _items(header, "ViewCodeSequence"):
        for item in (view, *_items(view, "ViewModifierCodeSequence")):
            for code in _terms(item, "CodeValue"):
                if code in _SPECIAL_VIEWS:
                    yield _SPECIAL_VIEWS[code]
    if "SpecimenDescriptionSequence" in header:
        yield ReasonCode.SPECIMEN
    factors = _terms(header, "EstimatedRadiographicMagnificationFactor")
    numbers = (found for factor in factors if (found := _NUMBER.search(factor)))
    if any(float(number[0].replace(",", ".")) > _MAX_MAGNIFICATION for number in numbers):
        yield ReasonCode.MAGNIFIED


def _terms(dataset: Dataset, keyword: str) -> set[str]:
    """The values of an attribute as a person reads them: in upper case, without insignificant spaces.

    A term in lower case, with a leading space (PS3.5 6.2), or beside a second value must not lift a rule.
    """
    value = readable(dataset, keyword)
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
    return {" ".join(str(one).replace("\0", " ").upper().split()) for one in values if one is not None}


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = readable(dataset, keyword)
    return [item for item in value if isinstance(item, Dataset)] if isinstance(value, Iterable) else []
