"""Proves that dciodvfy finds no error in a reconstructed object that the original does not have, and that the object
says it is derived.

Mammograms of many kinds are stored, verified, and retrieved as derived objects over real associations. Rules that
dciodvfy of 2022 does not know are checked here: PS3.3 C.7.6.1.1.2, C.7.6.1.1.5 and C.12.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DT

from node.app import Node
from node.archive.intake.eligibility import PRIVATE_CREATOR, PRIVATE_GROUP
from node.archive.serve.derived_header import PRIVATE_ATTRIBUTES
from node.dimse.client import Receiver, get, image_identifier, store
from storage.records import InstanceState, StoredInstance, StoredRendition
from tests.conftest import SECONDARY_CAPTURE, Archive, settings_for
from tests.support import samples
from tests.support.dciodvfy import error_lines
from tests.support.peers import run

pytestmark = pytest.mark.slow

SIDE = 256


# --- originals of many kinds ---


def _plain() -> Dataset:
    return samples.mammogram(_pixels())


def _pixels(bits: int = 12) -> NDArray[np.uint16]:
    return samples.breast(SIDE, SIDE, bits=bits)


def _padding() -> Dataset:
    return samples.mammogram(_pixels(), PixelPaddingValue=0)


def _padding_range() -> Dataset:
    return samples.mammogram(_pixels(), PixelPaddingValue=0, PixelPaddingRangeLimit=100)


def _padding_above() -> Dataset:
    """A MONOCHROME1 image whose background is padding, and has the largest value."""
    return samples.mammogram(
        4095 - _pixels(),
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        PixelPaddingValue=4095,
    )


def _padding_within() -> Dataset:
    """An image whose padding has a value that tissue may also get in the upscaler."""
    pixels = _pixels()
    pixels[pixels == 1800] = 1801
    pixels[:, -40:] = 1800
    return samples.mammogram(pixels, PixelPaddingValue=1800)


def _monochrome1() -> Dataset:
    return samples.mammogram(4095 - _pixels(), PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")


def _derived_before() -> Dataset:
    """An image that is a derived image already, and says so."""
    ds = samples.mammogram(_pixels(), ImageType=["DERIVED", "PRIMARY", "", "CAD"])
    ds.DerivationDescription = "Flat fielding"
    ds.DerivationCodeSequence = Sequence([_code("113062", "Pixel by pixel mask")])
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2.1", generate_uid()
    source.PurposeOfReferenceCodeSequence = Sequence([_code("121321", "Mask image for image processing operation")])
    ds.SourceImageSequence = Sequence([source])
    equipment = Dataset()
    equipment.PurposeOfReferenceCodeSequence = Sequence([_code("109101", "Acquisition Equipment")])
    equipment.Manufacturer, equipment.ManufacturerModelName = "Maker", "Scanner"
    ds.ContributingEquipmentSequence = Sequence([equipment])
    return ds


def _long_description() -> Dataset:
    return samples.mammogram(_pixels(), DerivationDescription="ä" * 1024)


def _extremes() -> Dataset:
    pixels = _pixels()
    return samples.mammogram(
        pixels, SmallestImagePixelValue=int(pixels.min()), LargestImagePixelValue=int(pixels.max())
    )


def _private() -> Dataset:
    """Private blocks of the modality. One of them is in the group of our block."""
    ds = _plain()
    block = ds.private_block(0x0009, "MAKER 1.0", create=True)
    block.add_new(0x01, "LO", "Wert")
    block.add_new(0x02, "OB", b"\x01\x02\x03\x04")
    inner = Dataset()
    inner.add_new(0x00091001, "LO", "inner")
    inner.add_new(0x00090010, "LO", "MAKER 1.0")
    block.add_new(0x03, "SQ", Sequence([inner]))
    ds.private_block(PRIVATE_GROUP, "SOMEONE ELSE", create=True).add_new(0x01, "LO", "theirs")
    return ds


def _odd_numbers() -> Dataset:
    """Values that a careless copy would write in another form."""
    ds = samples.mammogram(_pixels(), StudyDescription=" leading space")
    ds.KVP, ds.Exposure = "2.80E+01", "+81"
    ds.ImagerPixelSpacing = ["0.09400", "0.09400"]
    return ds


def _names(character_set: Any, name: str) -> Dataset:
    return samples.mammogram(_pixels(), SpecificCharacterSet=character_set, PatientName=name, StudyDescription="x")


def _overlay() -> Dataset:
    ds = _plain()
    ds.add_new(0x60000010, "US", SIDE)
    ds.add_new(0x60000011, "US", SIDE)
    ds.add_new(0x60000040, "CS", "G")
    ds.add_new(0x60000050, "SS", [1, 1])
    ds.add_new(0x60000100, "US", 1)
    ds.add_new(0x60000102, "US", 0)
    ds.add_new(0x60003000, "OW", np.packbits(_pixels() > 2000, bitorder="little").tobytes())
    return ds


def _secondary_capture() -> Dataset:
    return samples.mammogram(
        _pixels(), SOPClassUID=UID(SECONDARY_CAPTURE), ConversionType="DF", PresentationIntentType=None
    )


VARIANTS = {
    "plain": _plain,
    "padding": _padding,
    "padding range": _padding_range,
    "padding above": _padding_above,
    "padding within": _padding_within,
    "MONOCHROME1": _monochrome1,
    "10 bits": lambda: samples.mammogram(_pixels(10), bits=10),
    "14 bits": lambda: samples.mammogram(_pixels(14), bits=14),
    "16 bits": lambda: samples.mammogram(_pixels(16), bits=16),
    "derived before": _derived_before,
    "long description": _long_description,
    "extremes": _extremes,
    "private": _private,
    "private, implicit VR": _private,
    "odd numbers": _odd_numbers,
    "odd numbers, implicit VR": _odd_numbers,
    "UTF-8": lambda: _names("ISO_IR 192", "Müller^Anna=山田^花子"),
    "Japanese": lambda: _names(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Japanese, implicit VR": lambda: _names(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Cyrillic": lambda: _names("ISO_IR 144", "Люкceмбypг"),
    "overlay": _overlay,
    "secondary capture": _secondary_capture,
    "trailing padding": lambda: samples.mammogram(_pixels(), DataSetTrailingPadding=b"\0" * 20),
}


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


# --- stored, verified, and got back ---


@dataclass(frozen=True)
class Made:
    """An original as it was sent, and the object that a peer of policy ``reconstructed`` got for it."""

    original_file: Path
    derived_file: Path
    instance: StoredInstance
    rendition: StoredRendition
    base: Path
    payload: Path

    @property
    def original(self) -> Dataset:
        return dcmread(self.original_file)

    @property
    def derived(self) -> Dataset:
        return dcmread(self.derived_file)


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Made]]:
    folder = tmp_path_factory.mktemp("dciodvfy")
    (folder / "received").mkdir()
    settings: dict[str, Any] = {
        "codec": {"scales": [1], "effort": 3},
        "reconstruct": {"upscaler": "bicubic"},
    }
    sent = {}
    for number, (name, build) in enumerate(VARIANTS.items()):
        syntax = ImplicitVRLittleEndian if "implicit" in name else ExplicitVRLittleEndian
        sent[name] = samples.write(build(), folder / f"{number}.dcm", syntax)
    with (
        Receiver(folder / "received") as receiver,
        Node(settings_for(folder / "archive", receiver.port, **settings)) as node,
    ):
        archive = Archive(node, receiver)
        statuses: list[int] = []
        store(
            list(sent.values()),
            archive.address,
            calling="MODALITY",
            each=lambda path, status, _: statuses.append(status),
        )
        assert statuses == [0x0000] * len(sent)
        yield {name: _got_back(archive, path) for name, path in sent.items()}


def _got_back(archive: Archive, file: Path) -> Made:
    original = dcmread(file, stop_before_pixels=True)
    instance = archive.settled(original.SOPInstanceUID)
    assert instance.state is InstanceState.VERIFIED, instance.reason
    rendition = instance.rendition
    assert rendition is not None
    final = get(
        image_identifier(original.StudyInstanceUID),
        archive.address,
        calling="VIEWER",
        sop_classes=[original.SOPClassUID],
        receiver=archive.receiver,
    )
    assert (final.Status, final.NumberOfCompletedSuboperations) == (0x0000, 1)
    assert original.SOPInstanceUID not in archive.receiver.received
    return Made(
        file,
        archive.receiver.received[rendition.derived_uid],
        instance,
        rendition,
        archive.node.store.held(rendition.base_digest),
        archive.node.store.held(rendition.rendition_digest),
    )


@pytest.fixture(params=VARIANTS)
def made(request: pytest.FixtureRequest, all_made: dict[str, Made]) -> Made:
    return all_made[request.param]


# --- dciodvfy ---


def test_dciodvfy_finds_no_new_error(made: Made) -> None:
    assert error_lines(made.derived_file) - error_lines(made.original_file) == set()


def test_dciodvfy_finds_no_error_at_all_in_a_clean_one(all_made: dict[str, Made]) -> None:
    assert error_lines(all_made["plain"].original_file) == set()
    assert error_lines(all_made["plain"].derived_file) == set()


def test_dciodvfy_would_find_one(all_made: dict[str, Made], tmp_path: Path) -> None:
    """Without this check, the lack of findings in other tests would prove nothing."""
    broken = all_made["plain"].derived
    broken.LossyImageCompression = "MAYBE"
    del broken.ImageType
    broken.save_as(tmp_path / "broken.dcm")
    assert len(error_lines(tmp_path / "broken.dcm")) >= 2


# --- dcentvfy ---


def entity_errors(*files: Path) -> set[str]:
    """Attributes that, by dcentvfy, differ between instances of one patient, study, series or frame of reference."""
    ran = run("dcentvfy", *files)
    return {line for line in ran.output.splitlines() if line.startswith("Error")}


def test_a_reconstruction_belongs_beside_its_original(made: Made) -> None:
    assert entity_errors(made.original_file, made.derived_file) == set()


def test_dcentvfy_would_find_one(all_made: dict[str, Made], tmp_path: Path) -> None:
    """Without this check, the lack of findings in other tests would prove nothing."""
    stranger = all_made["plain"].derived
    stranger.PatientSex, stranger.StudyDate = "M", "19990101"
    stranger.save_as(tmp_path / "stranger.dcm")
    assert len(entity_errors(all_made["plain"].original_file, tmp_path / "stranger.dcm")) >= 2


# --- what it says about itself ---


def test_identity(made: Made) -> None:
    original, derived = made.original, made.derived
    assert derived.SOPInstanceUID == made.rendition.derived_uid != original.SOPInstanceUID
    assert derived.file_meta.MediaStorageSOPInstanceUID == derived.SOPInstanceUID
    assert derived.SOPInstanceUID.is_valid
    assert derived.SOPInstanceUID.startswith("2.25.")
    for keyword in ("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"):
        assert derived[keyword].value == original[keyword].value
    assert list(derived.ImageType) == ["DERIVED", *list(original.ImageType)[1:]]


def test_it_is_declared_lossy(made: Made) -> None:
    derived = made.derived
    assert derived.LossyImageCompression == "01"
    ratios, methods = _list(derived, "LossyImageCompressionRatio"), _list(derived, "LossyImageCompressionMethod")
    assert len(ratios) == len(methods) == 1
    assert methods == ["LPACS_BICUBIC"]
    assert all(len(method) <= 16 for method in methods)
    payload_bytes = made.base.stat().st_size + made.payload.stat().st_size
    assert float(ratios[0]) == pytest.approx(len(made.original.PixelData) / payload_bytes, abs=0.005)
    assert derived[0x0008, 0x001C].value == "YES"  # its noise is drawn


def test_derivation(made: Made) -> None:
    original, derived = made.original, made.derived
    before = _codes(original, "DerivationCodeSequence")
    assert _codes(derived, "DerivationCodeSequence") == [*before, ("113040", "DCM")], "of a base of full size"
    description = str(derived.DerivationDescription)
    assert len(description) <= 1024
    for part in ("x1 jpegxl", "bicubic", ":1", "not for primary interpretation"):
        assert part in description
    assert description.startswith(str(original.get("DerivationDescription", ""))[:700])


def test_source(made: Made) -> None:
    original, derived = made.original, made.derived
    before = list(original.get("SourceImageSequence") or [])
    *kept, source = derived.SourceImageSequence
    assert kept == before
    assert source.ReferencedSOPClassUID == original.SOPClassUID
    assert source.ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert _codes(source, "PurposeOfReferenceCodeSequence") == [("121320", "DCM")]
    assert source.SpatialLocationsPreserved == "YES"


def test_contributing_equipment(made: Made) -> None:
    before = list(made.original.get("ContributingEquipmentSequence") or [])
    *kept, equipment = made.derived.ContributingEquipmentSequence
    assert kept == before
    assert _codes(equipment, "PurposeOfReferenceCodeSequence") == [("109100", "DCM")]
    assert equipment.Manufacturer == "Latent PACS"
    assert equipment.ManufacturerModelName
    assert equipment.SoftwareVersions == version("latent-pacs")
    assert DT(equipment.ContributionDateTime) == made.rendition.verified_at.replace(tzinfo=UTC)


def test_private_block(made: Made) -> None:
    """Every value is compared with what was sent, what was received and what the store holds."""
    derived, rendition = made.derived, made.rendition
    block = derived.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    expected = {
        0x01: str(rendition.point),
        0x02: "bicubic",
        0x03: rendition.weights_digest,
        0x06: made.original.SOPInstanceUID,
        0x07: hashlib.sha256(made.original.PixelData).hexdigest(),
        0x08: hashlib.sha256(made.base.read_bytes()).hexdigest(),
        0x09: hashlib.sha256(derived.PixelData).hexdigest(),
        0x0A: rendition.verdict.psnr_db,
        0x0B: rendition.verdict.fsim_mean,
        0x0C: rendition.verdict.fsim_p5,
        0x0D: "PASSED",
        0x0F: "DRAWN",
        0x10: rendition.structure_uid,
    }
    for offset, value in expected.items():
        assert (block[offset].value or "") == value, PRIVATE_ATTRIBUTES[offset]
    assert {element.tag.element & 0xFF for element in _own_block(derived)} == set(PRIVATE_ATTRIBUTES)
    for element in _own_block(derived):
        assert PRIVATE_ATTRIBUTES[element.tag.element & 0xFF][0] == element.VR
    assert rendition.output_digest == block[0x09].value
    assert rendition.verdict.psnr_db > 28.42


# --- what stays as it was ---

CHANGED = {
    "ImageComments": "says what it is to readers in a plain viewer",
    "SyntheticData": "its noise is drawn",
    "ImageType": "value 1 is DERIVED",
    "SOPInstanceUID": "an image of its own",
    "LossyImageCompression": "01",
    "LossyImageCompressionRatio": "added",
    "LossyImageCompressionMethod": "added",
    "DerivationDescription": "added to",
    "DerivationCodeSequence": "added to",
    "SourceImageSequence": "added to",
    "ContributingEquipmentSequence": "added to",
    "SmallestImagePixelValue": "of these pixels",
    "LargestImagePixelValue": "of these pixels",
    "PixelData": "reconstructed",
    "DataSetTrailingPadding": "dropped",
    **dict.fromkeys(("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID"), "dropped"),
}
"""All that may differ from the original, beside our private block."""

NEVER_ADDED = {"SmallestImagePixelValue", "LargestImagePixelValue", "DataSetTrailingPadding"}


def test_everything_else_is_unchanged(made: Made) -> None:
    """Elements are compared one by one: tags, VRs and value bytes."""
    original, derived = made.original, made.derived
    own = {element.tag for element in _own_block(derived)} | {_own_creator(derived).tag}
    for tag in sorted({*original.keys(), *derived.keys()} - own):
        keyword = keyword_for_tag(tag)
        if keyword in CHANGED and not (keyword in NEVER_ADDED and tag not in original):
            continue
        assert tag in original, f"{tag} {keyword} was added"
        assert tag in derived, f"{tag} {keyword} is gone"
        assert _content(derived, tag) == _content(original, tag), f"{tag} {keyword}"
        if not original.file_meta.TransferSyntaxUID.is_implicit_VR:
            assert derived[tag].VR == original[tag].VR, f"{tag} {keyword}"


def _content(ds: Dataset, tag: Any) -> Any:
    """The bytes of a value as encoded; the items of a sequence as data sets."""
    raw = ds.get_item(tag)
    is_sequence = raw is None or raw.VR == "SQ" or (not tag.is_private and dictionary_VR(tag) == "SQ")
    return ds[tag].value if is_sequence or not isinstance(raw.value, bytes) else raw.value


def test_pixel_description_is_unchanged(made: Made) -> None:
    original, derived = made.original, made.derived
    for keyword in ("Rows", "Columns", "BitsStored", "HighBit", "PhotometricInterpretation", "RescaleSlope"):
        assert derived[keyword].value == original[keyword].value
    assert derived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert len(derived.PixelData) == derived.Rows * derived.Columns * 2
    assert derived["PixelData"].VR == "OW"


# --- pixels ---


def test_pixels(made: Made) -> None:
    original, derived = made.original, made.derived
    before, after = _stored_values(original), _stored_values(derived)
    assert not np.array_equal(after, before)
    assert int(after.max()) < 1 << original.BitsStored
    padding = _padded(original, before)
    assert np.array_equal(_padded(original, after), padding), (
        "padding where the original has none, or none where it has"
    )
    assert np.array_equal(after[padding], before[padding])
    assert before[~padding].min() <= after[~padding].min()
    assert after[~padding].max() <= before[~padding].max()
    error = after.astype(float) - before
    assert np.sqrt(np.mean(error[~padding] ** 2)) < 0.03 * (1 << original.BitsStored)


def test_variants_have_padding(all_made: dict[str, Made]) -> None:
    """Without padding, the test above would prove nothing."""
    for name, one in all_made.items():
        original = one.original
        assert _padded(original, _stored_values(original)).any() == name.startswith("padding")


def test_extremes_are_stated_of_these_pixels(all_made: dict[str, Made]) -> None:
    derived = all_made["extremes"].derived
    values = _stored_values(derived)
    assert derived.SmallestImagePixelValue == values.min()
    assert derived.LargestImagePixelValue == values.max()


def _stored_values(ds: Dataset) -> NDArray[np.uint16]:
    return np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)


def _padded(ds: Dataset, values: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """The values that are padding by the header (PS3.3 C.7.5.1.1.2), as a mask."""
    if "PixelPaddingValue" not in ds:
        return np.zeros(values.shape, np.bool_)
    low, high = sorted((ds.PixelPaddingValue, ds.get("PixelPaddingRangeLimit", ds.PixelPaddingValue)))
    return (values >= low) & (values <= high)


# --- reading ---


def _list(ds: Dataset, keyword: str) -> list[Any]:
    value = ds.get(keyword)
    if value is None:
        return []
    return list(value) if isinstance(value, MultiValue) else [value]


def _codes(ds: Dataset, keyword: str) -> list[tuple[str, str]]:
    return [(str(item.CodeValue), str(item.CodingSchemeDesignator)) for item in ds.get(keyword) or []]


def _own_creator(ds: Dataset) -> DataElement:
    (creator,) = (one for one in ds.group_dataset(PRIVATE_GROUP) if one.value == PRIVATE_CREATOR)
    return creator


def _own_block(ds: Dataset) -> list[DataElement]:
    start = _own_creator(ds).tag.element << 8
    return [one for one in ds.group_dataset(PRIVATE_GROUP) if start <= one.tag.element <= start + 0xFF]
