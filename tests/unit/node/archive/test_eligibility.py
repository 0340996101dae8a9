"""Proves which images may be reconstructed, and that every other stays exact with a reason."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000, ExplicitVRBigEndian, ExplicitVRLittleEndian

from node.archive.intake.eligibility import PRIVATE_CREATOR, why_exact
from node.config import EligibilitySettings, parse
from storage.dicom.dicomfile import opened
from storage.dicom.writing import encode
from storage.records import ReasonCode
from tests.support.encoded_elements import element, item, sequence
from tests.support.samples import breast, mammogram, write, write_body

SHIPPED = EligibilitySettings()


def reason(
    ds: Dataset, folder: Path, settings: EligibilitySettings | None = None, syntax: str = ExplicitVRLittleEndian
) -> str:
    path = write(ds, folder / "one.dcm", syntax)
    with opened(path) as file:
        return why_exact(file, file.header(), settings or EligibilitySettings()).sentence


def sample(**changes: Any) -> Dataset:
    return mammogram(breast(300, 280), **changes)


def code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "view"
    return item


def test_a_clean_mammogram_is_eligible(tmp_path: Path) -> None:
    assert reason(sample(), tmp_path) == ""
    assert reason(sample(NumberOfFrames=1), tmp_path) == ""
    assert reason(sample(PhotometricInterpretation="MONOCHROME1"), tmp_path) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"}, "eligibility.classes"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "eligibility.classes"),
        ({"NumberOfFrames": 2}, "multi-frame"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric"),
        ({"SamplesPerPixel": 3}, "photometric"),
        ({"BitsAllocated": 8}, "bits allocated"),
        ({"BitsStored": 7, "HighBit": 6}, "bits stored are not 8 to 16"),
        ({"HighBit": 15}, "high bit"),
        ({"PixelRepresentation": 1}, "signed"),
        ({"PixelRepresentation": [1, 0]}, "signed"),  # readers take the first value
        ({"PixelRepresentation": 2}, "signed"),
        ({"LossyImageCompression": "01"}, "already lossy"),
        ({"BurnedInAnnotation": "YES"}, "burned-in"),
        ({"QualityControlImage": "YES"}, "quality control"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for processing"),
        ({"EstimatedRadiographicMagnificationFactor": "1.8"}, "magnified more than 1.2 times"),
        ({"Rows": 255}, "smaller than 256"),
        ({"PixelData": None}, "no pixel data"),
        ({"SpecimenDescriptionSequence": Sequence([])}, "specimen"),
    ],
)
def test_images_outside_the_list_are_exact(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    found = reason(sample(**changes), tmp_path)
    assert says in found


@pytest.mark.parametrize(
    ("tag", "vr", "value", "says"),
    [
        (0x00282110, b"CS", b" 01 ", "already lossy"),
        (0x00282110, b"CS", b"01\\00 ", "already lossy"),
        (0x00282110, b"CS", b"1 ", "already lossy"),
        (0x00282110, b"OB", b"01", "already lossy"),
        (0x00282110, b"CS", b" 00 ", ""),
        (0x00282110, b"CS", b"  ", ""),
        (0x00280301, b"CS", b"yes ", "burned-in"),
        (0x00280301, b"CS", b" YES", "burned-in"),
        (0x00280301, b"CS", b"YES\\NO", "burned-in"),
        (0x00280300, b"CS", b"Yes\0", "quality control"),
        (0x00080068, b"CS", b" FOR PROCESSING ", "for processing"),
        (0x00080068, b"CS", b"for  processing ", "for processing"),
        (0x00181114, b"DS", b"1,8 ", "magnified"),
        (0x00181114, b"DS", b"1.0\\1.8 ", "magnified"),
        (0x00181114, b"LO", b"x 1.8 ", "magnified"),
        (0x00181114, b"DS", b"1,1 ", ""),
        (0x00181114, b"FD", b"1.8", ""),  # 3 bytes, which nobody can read
        (0x00280008, b"US", b"1", ""),
        (0x00080060, b"US", b"1", ""),
        (0x00540220, b"LO", b"spot", ""),
        (0x00990010, b"LO", b" LATENT_PACS 1\0", "reconstruction of this archive"),
    ],
)
def test_a_value_that_is_written_oddly_lifts_no_rule(
    tmp_path: Path, tag: int, vr: bytes, value: bytes, says: str
) -> None:
    ds = sample()
    ds.pop(tag, None)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    head += struct.pack("<HI" if vr == b"OB" else "<H", *([0] if vr == b"OB" else []), len(value))
    before, after = (encode(ds, ExplicitVRLittleEndian, within=part) for part in (range(tag), range(tag, 1 << 32)))
    uids = {"sop_class": ds.SOPClassUID, "sop_instance": ds.SOPInstanceUID, "syntax": ExplicitVRLittleEndian}
    path = write_body(before + head + value + after, tmp_path / "odd.dcm", **uids)
    with opened(path) as file:
        found = why_exact(file, file.outline(), SHIPPED).sentence
    assert says in found
    assert bool(says) == bool(found)


@pytest.mark.parametrize("undefined", [False, True])
def test_large_sequences_are_not_carried(undefined: bool, tmp_path: Path) -> None:
    """15 MB of empty items would take the node a minute and 1.7 GB whenever the reconstruction is sent."""
    ds = sample()
    uids = {"sop_class": ds.SOPClassUID, "sop_instance": ds.SOPInstanceUID, "syntax": ExplicitVRLittleEndian}
    parts = range(0x00189506), range(0x00189506, 1 << 32)
    before, after = (encode(ds, ExplicitVRLittleEndian, within=part) for part in parts)
    for count, says in ((19_000, ""), (20_001, "20,000 items")):
        items = item(b"", ExplicitVRLittleEndian) * count
        many = element(0x00189506, "SQ", items, ExplicitVRLittleEndian)
        if undefined:
            many = sequence(0x00189506, items, ExplicitVRLittleEndian)
        path = write_body(before + many + after, tmp_path / "many.dcm", **uids)
        with opened(path) as file:
            found = why_exact(file, file.outline(), SHIPPED).sentence
        assert says in found
        assert bool(says) == bool(found)


@pytest.mark.parametrize("value", [" r-102d6", "399055006 "])
def test_a_view_code_that_is_written_oddly(tmp_path: Path, value: str) -> None:
    view = code("399162004")
    view.ViewModifierCodeSequence = Sequence([code(value)])
    assert "view" in reason(sample(ViewCodeSequence=Sequence([view])), tmp_path)


@pytest.mark.parametrize("value", ["399163009", "R-102D6", "399055006", "R-102D7"])
def test_special_views(tmp_path: Path, value: str) -> None:
    ds = sample()
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence([code(value)])
    assert "view" in reason(ds, tmp_path)


def test_signed_and_reconstructed_objects(tmp_path: Path) -> None:
    signed = sample()
    signed.DigitalSignaturesSequence = Sequence([Dataset()])
    assert reason(signed, tmp_path) == "digitally signed"
    own = sample()
    own.private_block(0x0099, PRIVATE_CREATOR, create=True).add_new(1, "LO", "x")
    assert reason(own, tmp_path) == "a reconstruction of this archive"


def test_syntaxes(tmp_path: Path) -> None:
    assert reason(sample(), tmp_path, syntax=ExplicitVRBigEndian) == "big endian"
    ds = sample()
    body = write(ds, tmp_path / "two.dcm").read_bytes()
    with opened(tmp_path / "two.dcm") as file:
        data = bytes(file.data)
    assert data in body
    lossy = write_body(data, tmp_path / "three.dcm", sop_class=ds.SOPClassUID, sop_instance="1.2", syntax=JPEG2000)
    with opened(lossy) as file:
        assert why_exact(file, file.header(), EligibilitySettings()) is ReasonCode.LOSSY


def test_scanned_film_by_configuration(tmp_path: Path) -> None:
    raw = {"eligibility": {"classes": [{"sop_class": "1.2.840.10008.5.1.4.1.1.7", "modality": "MG"}]}}
    film = parse(raw, "t").eligibility
    capture = sample(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert reason(capture, tmp_path, film) == ""
    assert "eligibility.classes" in reason(
        sample(SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT"), tmp_path, film
    )
