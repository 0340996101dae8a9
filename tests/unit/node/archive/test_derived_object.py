"""Proves that a derived object carries odd headers, and that an original whose derived object cannot be made stays."""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet

from node.app import Node
from node.archive.serve import derived_object
from node.archive.serve.derived_header import derived_header
from node.dimse import client
from storage.dicom.dicomfile import HeaderBytes, write_header_for_pixels
from storage.dicom.pixels import pixel_digest
from storage.dicom.self_check import fault_of_object
from storage.dicom.writing import encode
from storage.formats import coders
from storage.formats.payload import Base, Rendition
from storage.records import InstanceState, OperatingPoint, OriginalForm, Verdict
from tests.conftest import Archive, settings_for
from tests.support.encoded_elements import element, item, sequence
from tests.support.peers import data_set_bytes
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write, write_body

EXPLICIT, IMPLICIT = ExplicitVRLittleEndian, ImplicitVRLittleEndian
DERIVED = "2.25.1234567890"
PIXELS = breast(32, 24)


# --- the header ---


def between(ds: Dataset, syntax: UID, *odd: bytes) -> bytes:
    """The data set without pixels, with invalid elements."""
    tags = [int.from_bytes(one[:2], "little") << 16 | int.from_bytes(one[2:4], "little") for one in odd]
    named = dict(zip(tags, odd, strict=True))
    for tag in sorted(ds.keys()):
        if tag.group < 0x7FE0 and int(tag) not in named:
            named[int(tag)] = encode(ds, syntax, within=range(tag, tag + 1))
    return b"".join(named[tag] for tag in sorted(named))


def derived(tmp_path: Path, syntax: UID, *odd: bytes, behind: bytes = b"", measured_uid: str = "") -> Dataset:
    """The derived object of a mammogram with invalid elements, proved and read back from explicit VR."""
    header = HeaderBytes(str(syntax), between(mammogram(PIXELS), syntax, *odd), behind)
    point = OperatingPoint(2, "jpegls")
    coded = coders.encode(np.zeros((16, 12), np.uint16), point)
    base = Base(point, *PIXELS.shape, 12, 0, 4095, None, 0.0, 1.0, 0.0, "", "0" * 64, "OW", header, coded)
    verdict = Verdict(40.0, 0.99, 0.98, 1)
    made = Rendition(
        *("0" * 64, "1.2.3", DERIVED, "bicubic", "LPACS_BICUBIC", False, "0" * 64, {}, 1, 1),
        *(pixel_digest(PIXELS), pixel_digest(PIXELS), verdict),
        extra={"minimum": [0, 0], "maximum": [4095, 4095]},
        measured_uid=measured_uid,
    )
    path = tmp_path / "derived.dcm"
    with path.open("wb") as out:
        made_header = derived_header(base, made, 100, datetime(2026, 1, 2, tzinfo=UTC))
        after = write_header_for_pixels(out, made_header, PIXELS.nbytes)
        out.write(PIXELS.astype("<u2").tobytes() + after)
    assert fault_of_object(path, pixel_digest(PIXELS), DERIVED) == ""
    return dcmread(path)


def el(tag: int, vr: str, value: bytes, syntax: UID = EXPLICIT) -> bytes:
    return element(tag, vr, value, syntax)


def test_the_creation_of_the_original_is_not_that_of_the_derived_object(tmp_path: Path) -> None:
    created = ((0x00080012, "DA", b"20200101"), (0x00080013, "TM", b"101010"), (0x00080014, "UI", b"1.2.3\0"))
    copy = derived(tmp_path, EXPLICIT, *(el(*one) for one in created))
    assert not {tag for tag, _, _ in created} & copy.keys()


CARRIED: list[Any] = [
    pytest.param(0x50003000, b"\1\0\2\0", id="curve data"),
    pytest.param(0x50FE0005, b"\2\0", id="curve dimensions"),
    pytest.param(0x60003000, b"\1\0", id="overlay data"),
    pytest.param(0x60FF3000, b"\1\0", id="private group 60FF"),
    pytest.param(0x00180060, b"28.00000000000000001", id="DS of 20 characters"),
    pytest.param(0x00200013, b"one ", id="IS with letters"),
    pytest.param(0x00181151, b"", id="no value"),
    pytest.param(0x00081030, b"x" * 300, id="too long"),
    pytest.param(0x00086FFF, b"\1\2", id="unknown element"),
]


@pytest.mark.parametrize(("tag", "value"), CARRIED)
def test_invalid_elements_of_an_implicit_data_set_are_carried(tag: int, value: bytes, tmp_path: Path) -> None:
    copy = derived(tmp_path, IMPLICIT, el(tag, "", value, IMPLICIT))
    assert (copy.get_item(tag).value or b"") == value
    assert "left out" not in copy.DerivationDescription


@pytest.mark.parametrize(
    ("characters", "text"),
    [
        (b"", "é乳".encode()),  # undeclared
        (b"ISO_IR 100", "é乳".encode()),
        (b"ISO_IR 13 ", "ｿｱ".encode("shift_jis")),
        (b"GB18030 ", "誠乳房".encode("gb18030")),
    ],
)
@pytest.mark.parametrize(("tag", "vr"), [(0x00082111, "ST"), (0x00204000, "LT")])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_received_text_is_not_encoded_again_when_it_is_continued(
    characters: bytes, text: bytes, tag: int, vr: str, syntax: UID, tmp_path: Path
) -> None:
    copy = derived(tmp_path, syntax, el(0x00080005, "CS", characters, syntax), el(tag, vr, text + b" ", syntax))
    assert copy.get_item(tag).value.startswith(text + b"; ")


def test_a_text_with_escape_sequences_is_continued_in_ascii(tmp_path: Path) -> None:
    """PS3.5 Annex K: after Chinese characters, ASCII is not in force until it is designated again."""
    text = b"a \x1b$)A\xcd\xf5 b"
    characters = el(0x00080005, "CS", b"\\ISO 2022 IR 58 ")
    copy = derived(tmp_path, EXPLICIT, characters, el(0x00204000, "LT", text))
    assert copy.get_item(0x00204000).value.startswith(text + b"\x1b(B; Reconstructed by Latent PACS")


@pytest.mark.parametrize(("tag", "vr", "longest"), [(0x00082111, "ST", 1024), (0x00204000, "LT", 10240)])
def test_received_text_is_cut_only_if_ours_does_not_fit_behind_it(
    tag: int, vr: str, longest: int, tmp_path: Path
) -> None:
    """PS3.5 6.2: ST has at most 1024 characters, and LT 10240."""
    ours = "; " + str(derived(tmp_path, EXPLICIT)[tag].value)
    for spare in (2, 0, -2, -longest):
        room = longest - len(ours)
        text = "".join(chr(65 + number % 26) for number in range(room - spare))
        copy = derived(tmp_path, EXPLICIT, el(tag, vr, text.encode() + b" " * (len(text) % 2)))
        assert copy[tag].value == text[:room] + ours


def test_figures_that_were_measured_on_other_pixels_name_these(tmp_path: Path) -> None:
    note = "; figures of 2.25.5, from which these pixels differ by rounding"
    assert derived(tmp_path, EXPLICIT, measured_uid="2.25.5").DerivationDescription.endswith(note)
    assert "figures of" not in derived(tmp_path, EXPLICIT).DerivationDescription


def test_what_describes_the_pixels_of_the_original_is_left_out(tmp_path: Path) -> None:
    histogram = item(el(0x00603002, "US", b"\1\0"), EXPLICIT)
    stated = (
        el(0x00280108, "US", b"\1\0"),
        el(0x00280109, "US", b"\2\0"),
        el(0x00603000, "SQ", histogram),
        el(0x01000410, "CS", b"AO"),
        el(0x01000420, "DT", b"20200101"),
    )
    copy = derived(tmp_path, EXPLICIT, *stated)
    assert not {0x00280108, 0x00280109, 0x00603000, 0x01000410, 0x01000420} & set(copy.keys())


LEFT_OUT: list[Any] = [
    pytest.param(el(0x00281052, "US", b"\1\2\3"), "(0028,1052)", id="US of 3 bytes"),
    pytest.param(el(0x00181411, "FD", b"\1\2\3\4"), "(0018,1411)", id="FD of 4 bytes"),
    pytest.param(el(0x00280103, "US", b"\0\0\0"), "(0028,0103)", id="pixel representation beside sequences"),
    pytest.param(el(0x00081140, "SQ", b"none"), "(0008,1140)", id="sequence of no items"),
    pytest.param(
        el(0x00081140, "SQ", item(el(0x00280010, "US", b"\1\2\3") + el(0x00281050, "DS", b"10:1"), EXPLICIT)),
        "(0028,0010)",
        id="inside a sequence",
    ),
]


@pytest.mark.parametrize(("odd", "shown"), LEFT_OUT)
def test_unreadable_elements_are_left_out_and_listed(odd: bytes, shown: str, tmp_path: Path) -> None:
    copy = derived(tmp_path, EXPLICIT, odd)
    assert f"elements that cannot be read were left out: {shown}" in copy.DerivationDescription
    if shown == "(0028,0010)":
        assert [list(one.keys()) for one in copy[0x00081140].value] == [[0x00281050]]
    else:
        assert int(shown[1:5] + shown[6:10], 16) not in copy


def test_all_private_elements_are_carried(tmp_path: Path) -> None:
    """They include wrong lengths, an unknown VR, a sequence of undefined length, and elements of our group without a
    creator."""
    inner = item(el(0x00091001, "OB", b"\1\2"), EXPLICIT, undefined=True)
    copy = derived(
        tmp_path,
        EXPLICIT,
        el(0x00090010, "LO", b"FIELD TEST"),
        el(0x00091001, "US", b"\1\2\3"),
        el(0x00091002, "ZZ", b"\1\2"),
        sequence(0x00091003, inner, EXPLICIT),
        el(0x00991001, "LO", b"of nobody "),
    )
    assert (copy.get_item(0x00091001).VR, copy.get_item(0x00091001).value) == ("UN", b"\1\2\3\0")
    assert (copy.get_item(0x00091002).VR, copy.get_item(0x00091002).value) == ("UN", b"\1\2")
    assert copy[0x00091003].value[0][0x00091001].value == b"\1\2"
    assert copy[0x00991001].value == "of nobody"
    block = copy.private_block(0x0099, "LATENT_PACS 1")
    assert (block.block_start, block[0x02].value) == (0x1100, "bicubic")


RATIOS: list[Any] = [
    # ratio and method of the source, those of the reconstruction, what is noted
    pytest.param(b"10:1", b"", ["15.36"], ["LPACS_BICUBIC"], "not a number", id="text"),
    pytest.param(b"10:1\\5 ", b"A\\B ", ["5", "15.36"], ["B", "LPACS_BICUBIC"], "with method A", id="one of two"),
    pytest.param(b"5 ", b"", ["5", "15.36"], ["UNKNOWN", "LPACS_BICUBIC"], "", id="no method"),
    pytest.param(b"", b"A ", ["1", "15.36"], ["A", "LPACS_BICUBIC"], "", id="no ratio"),
    pytest.param(b"28.00000000000000001", b"A ", ["15.36"], ["LPACS_BICUBIC"], "not a number", id="20 characters"),
    pytest.param(b"5 ", b"x" * 18, ["5", "15.36"], ["UNKNOWN", "LPACS_BICUBIC"], "UNKNOWN", id="method too long"),
    pytest.param(b"5 ", b"\xff\xfe", ["5", "15.36"], ["UNKNOWN", "LPACS_BICUBIC"], "UNKNOWN", id="method no text"),
]


@pytest.mark.parametrize(("ratio", "method", "ratios", "methods", "note"), RATIOS)
def test_invalid_ratios_and_methods(
    ratio: bytes, method: bytes, ratios: list[str], methods: list[str], note: str, tmp_path: Path
) -> None:
    copy = derived(tmp_path, EXPLICIT, el(0x00282112, "DS", ratio), el(0x00282114, "CS", method))

    def values(keyword: str) -> list[str]:
        value = copy[keyword].value
        return [str(one) for one in ([value] if isinstance(value, str | float) else value)]

    assert values("LossyImageCompressionRatio") == ratios
    assert values("LossyImageCompressionMethod") == methods
    assert note in copy.DerivationDescription
    assert ("left out" in copy.DerivationDescription) == (note not in ("", "UNKNOWN"))


def test_an_empty_value_of_image_type_keeps_its_place(tmp_path: Path) -> None:
    copy = derived(tmp_path, EXPLICIT, el(0x00080008, "CS", b"ORIGINAL\\PRIMARY\\\\CAD "))
    assert list(copy.ImageType) == ["DERIVED", "PRIMARY", "", "CAD"]


WRONG_VRS = {
    0x00080008: ("US", b"\1\2"),
    0x00080018: ("LO", b"1.2.3.4 "),
    0x00082111: ("OB", b"\1\2"),
    0x00082112: ("LO", b"text"),
    0x00089215: ("UN", b"\1\2\3\4"),
    0x0018A001: ("DS", b"10:1"),
    0x00280106: ("FD", bytes(8)),
    0x00282110: ("US", b"\0\0"),
    0x00282112: ("FD", bytes(8)),
    0x00282114: ("SQ", b""),
}


def test_attributes_of_a_wrong_vr_get_the_standard_vr(tmp_path: Path) -> None:
    copy = derived(tmp_path, EXPLICIT, *(el(tag, vr, value) for tag, (vr, value) in WRONG_VRS.items()))
    assert list(copy.ImageType) == ["DERIVED", "PRIMARY"]
    assert copy.SOPInstanceUID == DERIVED
    assert [one.CodeValue for one in copy.DerivationCodeSequence] == ["113040", "113085"]
    assert copy.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert copy.ContributingEquipmentSequence[0].ManufacturerModelName == "latent-pacs"
    assert (copy["SmallestImagePixelValue"].VR, copy.SmallestImagePixelValue) == ("US", 0)
    assert (copy.LossyImageCompression, copy.LossyImageCompressionRatio) == ("01", 15.36)
    assert copy.LossyImageCompressionMethod == "LPACS_BICUBIC"


def test_elements_after_the_pixels_remain_there(tmp_path: Path) -> None:
    """Private elements remain; trailing padding, repeated pixels and float pixels are removed."""
    behind = el(0x7FE10010, "LO", b"FIELD TEST") + el(0x7FE11001, "OB", b"\1\2\3\4")
    dropped = el(0x7FE00008, "OF", bytes(4)) + el(0x7FE00010, "OW", bytes(2)) + el(0xFFFCFFFC, "OB", bytes(6))
    copy = derived(tmp_path, EXPLICIT, el(0x00080000, "UL", b"\1\0\0\0"), behind=dropped + behind)
    tail = data_set_bytes(tmp_path / "derived.dcm")
    assert tail.endswith(el(0x7FE00010, "OW", PIXELS.tobytes()) + behind)
    assert not {0x7FE00008, 0xFFFCFFFC, 0x00080000} & set(copy.keys())


# --- the proof ---


def test_faults_of_an_object_are_reported(tmp_path: Path) -> None:
    ds = mammogram(PIXELS)
    digest, uid = pixel_digest(PIXELS), ds.SOPInstanceUID

    def fault(body: bytes, syntax: UID = EXPLICIT) -> str:
        path = write_body(body, tmp_path / "x.dcm", sop_class=MAMMOGRAPHY, sop_instance=uid, syntax=syntax)
        return fault_of_object(path, digest, uid)

    good = encode(ds, EXPLICIT)
    assert fault(good) == ""
    assert "pixels" in fault_of_object(write(ds, tmp_path / "y.dcm"), "0" * 64, uid)
    assert "SOP Instance UID" in fault_of_object(write(ds, tmp_path / "y.dcm"), digest, "1.2.3")
    assert "follows" in fault(el(0x00400301, "US", b"\1\0") + good)
    assert "follows" in fault(good + el(0x00281052, "DS", b"1 "))
    assert "no value representation" in fault(good + el(0x7FE11052, "ZZ", b"1 "))
    assert "no value representation" in fault(good + el(0x7FE11052, "??", b"1 "))
    assert "follows" in fault(good + bytes(8))
    assert "ends inside" in fault(good + b"\xe1\x7f\x10\x00LO\xff\x00")


# --- on the wire ---


def received_by(archive: Archive, ds: Dataset, calling: str, *syntaxes: UID) -> tuple[int, dict[str, bytes]]:
    """Final status of a C-GET of the study, and the received data sets by SOP Instance UID."""
    got: dict[str, bytes] = {}

    def keep(event: Any) -> int:
        got[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0

    entity = AE(calling)
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_requested_context(MAMMOGRAPHY, list(syntaxes))
    roles = [build_role(MAMMOGRAPHY, scp_role=True)]
    port = archive.address.port
    assoc = entity.associate("127.0.0.1", port, ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, keep)])
    query = client.image_identifier(ds.StudyInstanceUID)
    answers = list(assoc.send_c_get(query, StudyRootQueryRetrieveInformationModelGet))
    assoc.release()
    return int(answers[-1][0].Status), got


def send(archive: Archive, path: Path) -> int:
    statuses: list[int] = []
    client.store([path], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    return statuses[0]


def odd_file(tmp_path: Path) -> tuple[Dataset, Path]:
    """A mammogram in implicit VR with every fault that once prevented sending."""
    ds = mammogram(breast(300, 280))
    odd = [
        el(0x00282112, "", b"10:1", IMPLICIT),
        el(0x00281055, "", b"\1\2\3", IMPLICIT),
        el(0x50000005, "", b"\1\0", IMPLICIT),
        el(0x50003000, "", b"\1\0\2\0", IMPLICIT),
    ]
    body = between(ds, IMPLICIT, *odd) + el(0x7FE00010, "", ds.PixelData, IMPLICIT)
    body += el(0x7FE10010, "", b"FIELD TEST", IMPLICIT) + el(0xFFFCFFFC, "", bytes(4), IMPLICIT)
    path = write_body(
        body, tmp_path / "odd.dcm", sop_class=MAMMOGRAPHY, sop_instance=ds.SOPInstanceUID, syntax=IMPLICIT
    )
    return ds, path


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
def test_a_reconstruction_with_an_invalid_header_is_sent(archive: Archive, tmp_path: Path, syntax: UID) -> None:
    ds, path = odd_file(tmp_path)
    assert send(archive, path) == 0x0000
    held = archive.settled(ds.SOPInstanceUID)
    assert (held.state, held.reason) == (InstanceState.VERIFIED, "")
    assert held.rendition is not None
    status, got = received_by(archive, ds, "VIEWER", syntax)
    assert (status, list(got)) == (0x0000, [held.rendition.derived_uid])
    data = got[held.rendition.derived_uid]
    assert el(0x50003000, "OB", b"\1\0\2\0", syntax) in data
    assert data.endswith(el(0x7FE10010, "LO", b"FIELD TEST", syntax))
    copy = dcmread(BytesIO(data), force=True)
    assert pixel_digest(np.frombuffer(copy.PixelData, "<u2").reshape(300, 280)) == held.rendition.output_digest
    status, got = received_by(archive, ds, "EXACTVIEW", syntax)
    assert (status, list(got)) == (0x0000, [ds.SOPInstanceUID])
    assert el(0x00282112, "DS", b"10:1", syntax) in got[ds.SOPInstanceUID]


def failing_header(*_: Any) -> Dataset:
    raise TypeError("Müller^Anna has no such header")


def test_an_image_whose_object_cannot_be_made_is_exact_at_once(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one attempt, a reason without the patient's name and no object left in the store. Every peer gets the
    original."""
    monkeypatch.setattr(derived_object, "derived_header", failing_header)
    ds = mammogram(breast(300, 280))
    sent = write(ds, tmp_path / "x.dcm")
    assert send(archive, sent) == 0x0000
    held = archive.settled(ds.SOPInstanceUID)
    assert (held.state, held.rendition) == (InstanceState.EXACT, None)
    assert held.reason == "its reconstruction cannot be made as a whole: TypeError"
    status, got = received_by(archive, ds, "VIEWER", EXPLICIT)
    assert (status, got) == (0x0000, {ds.SOPInstanceUID: data_set_bytes(sent)})
    archive.node.index.garbage.collect({held.held.tier: archive.node.store} if held.held else {})
    assert list(archive.node.store.digests()) == [held.original_digest]


@pytest.mark.slow
def test_serving_falls_back_and_a_purge_is_refused(
    receiver: client.Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A rendition was verified, but its header can no longer be made. Later the original is lost as well."""
    settings = settings_for(tmp_path / "archive", receiver.port, originals={"coder": "none", "retain_for": "0d"})
    with Node(settings) as node:
        archive = Archive(node, receiver)
        ds = mammogram(breast(300, 280))
        sent = write(ds, tmp_path / "x.dcm")
        assert send(archive, sent) == 0x0000
        held = archive.settled(ds.SOPInstanceUID)
        assert held.state is InstanceState.VERIFIED
        with monkeypatch.context() as patch:
            patch.setattr(derived_object, "derived_header", failing_header)
            status, got = received_by(archive, ds, "VIEWER", EXPLICIT)
            assert (status, got) == (0x0000, {ds.SOPInstanceUID: data_set_bytes(sent)})
            assert "withheld, original sent: TypeError" in caplog.text
            report = node.retention.purge()
            assert report.purged == ()
            (kept,) = report.kept
            assert kept.kept_because.endswith("its reconstruction cannot be made as a whole: TypeError")
        assert len(node.retention.purge().purged) == 1
        with monkeypatch.context() as patch:
            patch.setattr(derived_object, "derived_header", failing_header)
            status, got = received_by(archive, ds, "VIEWER", EXPLICIT)
            assert (status, got) == (0xA702, {})
            assert "the rendition cannot be sent: TypeError; nor can the original" in caplog.text
        held = archive.settled(ds.SOPInstanceUID)
        assert held.held is not None
        assert held.held.form is OriginalForm.PURGED
        status, got = received_by(archive, ds, "VIEWER", EXPLICIT)
        assert (status, len(got)) == (0x0000, 1)


@pytest.mark.slow
def test_the_original_is_sent_if_no_encoding_of_the_reconstruction_is_accepted(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The reconstruction was made, and only its encoding for this receiver failed."""
    ds = mammogram(breast(300, 280))
    sent = write(ds, tmp_path / "x.dcm", IMPLICIT)
    assert send(archive, sent) == 0x0000
    assert archive.settled(ds.SOPInstanceUID).rendition is not None

    def failing(*_: Any) -> None:
        raise ValueError("Müller^Anna")

    monkeypatch.setattr(archive.node.retrieve, "as_syntax", failing)
    status, got = received_by(archive, ds, "VIEWER", IMPLICIT)
    assert (status, got) == (0x0000, {ds.SOPInstanceUID: data_set_bytes(sent)})
    assert "withheld, original sent: ValueError" in caplog.text
    assert "Müller" not in caplog.text


@pytest.mark.slow
def test_a_returned_reconstruction_of_another_patient_is_quarantined(archive: Archive, tmp_path: Path) -> None:
    """The same pixels with a corrected patient are held for people to decide. Elements that a gateway adds make no
    difference."""
    ds = mammogram(breast(300, 280))
    assert send(archive, write(ds, tmp_path / "x.dcm")) == 0x0000
    held = archive.settled(ds.SOPInstanceUID)
    assert held.rendition is not None
    client.move(client.image_identifier(ds.StudyInstanceUID), archive.address, calling="VIEWER", destination="VIEWER")
    returned = dcmread(archive.receiver.received[held.rendition.derived_uid])
    returned.RetrieveAETitle = "GATEWAY"
    returned.save_as(tmp_path / "same.dcm")
    assert send(archive, tmp_path / "same.dcm") == 0x0000
    assert archive.node.index.quarantine.all() == []
    returned.PatientName, returned.PatientID = "CORRECTED^BY ROUTER", generate_uid()
    returned.save_as(tmp_path / "other.dcm")
    assert send(archive, tmp_path / "other.dcm") == 0xC003
    (kept,) = archive.node.index.quarantine.all()
    assert kept.sop_instance_uid == held.rendition.derived_uid
    assert kept.reason.endswith("with another PatientName, PatientID")
