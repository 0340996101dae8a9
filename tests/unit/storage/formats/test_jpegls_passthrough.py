"""Proves that other decoders read the original's pixels from packed JPEG-LS that is sent unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom.data
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    generate_uid,
)

from benchmarks.ingest import free_port
from node.app import Node
from node.archive.originals.original_access import OriginalAccess
from node.archive.serve.retrieve import Retrieve
from node.dimse import client
from node.dimse.client import Receiver
from storage.dicom.dicomfile import opened
from storage.dicom.header_amendments import AmendmentKind
from storage.dicom.packbits import encode_plane
from storage.dicom.pixels import transcode
from storage.errors import PayloadError, PixelError, Unparseable
from storage.formats import jpegls_passthrough
from storage.formats.jpegls_passthrough import pass_through
from storage.formats.packed_original import pack_original
from storage.records import OriginalForm
from tests.conftest import settings_for, wait_for
from tests.support.peers import data_set_bytes, getscu, run, storescp
from tests.support.samples import MAMMOGRAPHY, byte_planes, mammogram, rle_file, write


def picture(rows: int = 128, columns: int = 96, *, bits: int = 12, seed: int = 0) -> np.ndarray:
    """Noise on a ramp. Nearly all values up to the largest are in use, as in an image of full size."""
    top = min(1 << bits, rows * columns // 3 + 1)
    noise = np.random.default_rng(seed).integers(-2, 3, rows * columns)
    ramp = np.arange(rows * columns) * top // (rows * columns)
    return np.clip(ramp + noise, 0, top - 1).astype(np.uint16).reshape(rows, columns)


def packed(path: Path, coder: str = "jpegls") -> Path:
    target = path.with_suffix(".lpacs")
    target.write_bytes(pack_original(path, coder, hashlib.sha256(path.read_bytes()).hexdigest()))
    return target


def pixels_by_gdcm(path: Path) -> bytes:
    gdcm = pytest.importorskip("gdcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    return bytes(reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape"))


def pixels_by_dcmtk(path: Path) -> bytes:
    ran = run("dcmdjpls", path, path.with_suffix(".native"))
    assert ran.code == 0, ran.said
    return bytes(dcmread(path.with_suffix(".native")).PixelData)


def pixels_by_imagecodecs(path: Path) -> bytes:
    ds = dcmread(path)
    frames = generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames", 1)))
    return b"".join(imagecodecs.jpegls_decode(frame).astype("<u2").tobytes() for frame in frames)


def of_bits(bits: int) -> Callable[[], Dataset]:
    return lambda: mammogram(picture(401, 397, bits=bits), bits=bits)


def several_frames() -> Dataset:
    frames = np.stack([picture(63, 47, seed=seed) for seed in range(3)])
    return mammogram(frames[0], NumberOfFrames=3, PixelData=frames.astype("<u2").tobytes())


def crowded() -> Dataset:
    """Elements of many kinds around the pixels: an overlay plane, private ones, VRs that depend on the pixels."""
    ds = mammogram(picture(65, 33), PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    ds["PixelPaddingValue"].VR = "US"
    ds.ReferencedImageSequence = [Dataset()]
    ds.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    ds["ReferencedImageSequence"].is_undefined_length = True
    ds.private_block(0x0019, "SOMEBODY", create=True).add_new(1, "LO", "odd")
    for tag, vr, value in ((0x60000010, "US", 65), (0x60000011, "US", 33), (0x60003000, "OW", b"\x55" * 270)):
        ds.add_new(tag, vr, value)
    ds.add_new(0xFFFCFFFC, "OB", b"after\0")
    ds.VOILUTSequence = [Dataset()]
    ds.VOILUTSequence[0].add_new(0x00283002, "US", [4, 0, 16])
    ds.VOILUTSequence[0].add_new(0x00283006, "US", [0, 1, 2, 3])
    return ds


PASSED = {
    **{f"{bits} bits": of_bits(bits) for bits in (8, 9, 10, 12, 14, 16)},
    "several frames": several_frames,
    "crowded": crowded,
    "one row": lambda: mammogram(picture(1, 5000)),
    "one column": lambda: mammogram(picture(5000, 1)),
    "one pixel": lambda: mammogram(np.array([[0]], np.uint16), PatientComments=" " * 9000),
    "one value": lambda: mammogram(np.full((64, 64), 0, np.uint16)),
    "bits above High Bit": lambda: mammogram(picture(401, 397, bits=16)),
    "latin": lambda: mammogram(picture(61, 60), PatientName="Äöü^ß", SpecificCharacterSet="ISO_IR 192"),
}


@pytest.mark.slow
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("name", PASSED)
def test_the_file_equals_that_of_transcode_and_others_decode_it(tmp_path: Path, name: str, syntax: UID) -> None:
    ds = PASSED[name]()
    pass_through(packed(write(ds, tmp_path / "x.dcm", syntax)), tmp_path / "passed")
    transcode(tmp_path / "x.dcm", tmp_path / "encoded", JPEGLSLossless)
    assert (tmp_path / "passed").read_bytes() == (tmp_path / "encoded").read_bytes()
    assert dcmread(tmp_path / "passed").file_meta.TransferSyntaxUID == JPEGLSLossless
    assert pixels_by_imagecodecs(tmp_path / "passed") == ds.PixelData
    assert pixels_by_dcmtk(tmp_path / "passed") == ds.PixelData
    assert pixels_by_gdcm(tmp_path / "passed") == ds.PixelData


def test_odd_lengths_of_codestreams_are_padded(tmp_path: Path) -> None:
    lengths = set()
    for seed in range(12):
        ds = mammogram(picture(64, 60, seed=seed))
        pass_through(packed(write(ds, tmp_path / "x.dcm")), tmp_path / "passed")
        fragment = next(generate_frames(dcmread(tmp_path / "passed").PixelData, number_of_frames=1))
        lengths.add(fragment.endswith(b"\xff\xd9\0"))
        assert len(fragment) % 2 == 0
        assert pixels_by_dcmtk(tmp_path / "passed") == ds.PixelData
    assert lengths == {True, False}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_header_of_pydicom(tmp_path: Path) -> None:
    """Each header gets pixels that can be passed through."""
    passed = 0
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").glob("*.dcm")):
        with suppress(Unparseable), opened(path) as file:
            ds, image = file.header(), mammogram(picture(64, 60))
            ds.update({one.tag: one for one in image.group_dataset(0x0028)})
            ds.NumberOfFrames, ds["PixelData"] = 1, image["PixelData"]
            if "SOPClassUID" not in ds or "ExtendedOffsetTable" in ds or not file.transfer_syntax.is_little_endian:
                continue
            source = write(ds, tmp_path / "x.dcm", (ExplicitVRLittleEndian, ImplicitVRLittleEndian)[passed % 2])
            pass_through(packed(source), tmp_path / "passed")
            transcode(source, tmp_path / "encoded", JPEGLSLossless)
            assert (tmp_path / "passed").read_bytes() == (tmp_path / "encoded").read_bytes(), path.name
            passed += 1
    assert passed > 50


def eight_bits() -> Dataset:
    ds = mammogram(picture(128, 96, bits=8), bits=8, BitsAllocated=8)
    ds.PixelData = picture(128, 96, bits=8).astype(np.uint8).tobytes()
    return ds


def coloured() -> Dataset:
    ds = mammogram(picture(64, 64), SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=1)
    ds.PixelData = ds.PixelData * 3
    return ds


UNPACKED = {
    "signed": lambda: mammogram(picture(128, 96), PixelRepresentation=1),
    "gaps between values": lambda: mammogram(picture(128, 96) * np.uint16(13), bits=16),
    "8 bits allocated": eight_bits,
    "three planes": coloured,
    "a value longer than its pixels": lambda: mammogram(picture(128, 96), PixelData=picture(129, 96).tobytes()),
    "no Pixel Representation": lambda: mammogram(picture(128, 96), PixelRepresentation=None),
}


@pytest.mark.parametrize("name", UNPACKED)
def test_originals_that_are_not_passed_through(tmp_path: Path, name: str) -> None:
    with pytest.raises(PixelError):
        pass_through(packed(write(UNPACKED[name](), tmp_path / "x.dcm")), tmp_path / "passed")


def test_other_coders_big_endian_rle_and_files_without_pixels_are_not_passed_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(128, 96)
    native = write(mammogram(pixels), tmp_path / "native.dcm")
    big = mammogram(pixels, PixelData=pixels.astype(">u2").tobytes())
    sources = [packed(native, "jpegxl"), packed(write(big, tmp_path / "big.dcm", ExplicitVRBigEndian))]
    rle = rle_file(mammogram(pixels), tmp_path / "rle.dcm", [encode_plane(plane) for plane in byte_planes(pixels)])
    sources.append(packed(rle))
    report = mammogram(pixels, PixelData=None, PatientComments="nothing " * 1000)
    sources.append(packed(write(report, tmp_path / "report.dcm")))
    for source in sources:
        with pytest.raises(PixelError):
            pass_through(source, tmp_path / "passed")
    whole = packed(native)
    monkeypatch.setattr(jpegls_passthrough, "MAX_LIGHT_BYTES", whole.stat().st_size - 1)
    with pytest.raises(PixelError, match="by a worker"):
        pass_through(whole, tmp_path / "passed")


def test_damage_is_detected_before_anything_is_written(tmp_path: Path) -> None:
    source = packed(write(mammogram(picture(128, 96)), tmp_path / "x.dcm"))
    data = bytearray(source.read_bytes())
    for at in (9, len(data) // 2, len(data) - 1):
        source.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(PayloadError):
            pass_through(source, tmp_path / "passed")
    assert not (tmp_path / "passed").exists()


# --- what a peer gets ---


@contextmanager
def holding(folder: Path, port: int, *images: Dataset, syntax: UID = ExplicitVRLittleEndian) -> Iterator[Node]:
    """A node that holds these images packed. Its peer FAST, at that port, prefers JPEG-LS."""
    peer = {
        "ae_title": "FAST",
        "host": "127.0.0.1",
        "port": port,
        "rendition": "original",
        "transfer_syntaxes": ["jpegls"],
    }
    peers = [{"ae_title": "MODALITY", "allow": ["store"]}, {**peer, "allow": ["move", "get"]}]
    settings = settings_for(folder / "archive", originals={"coder": "jpegls"}, peers=peers, eligibility={"classes": []})
    with Node(settings) as node:
        files = [write(ds, folder / f"{number}.dcm", syntax) for number, ds in enumerate(images)]
        statuses: list[int] = []
        client.store(files, address(node), calling="MODALITY", each=lambda _, status, __: statuses.append(status))
        assert statuses == [0] * len(files)
        wait_for(lambda: node.index.originals.totals().packed == len(images), what="packed originals")
        yield node


def address(node: Node) -> client.Address:
    return client.Address("127.0.0.1", node.server.port, node.settings.node.ae_title)


def moved(node: Node, ds: Dataset) -> int:
    identifier = client.image_identifier(ds.StudyInstanceUID)
    return int(client.move(identifier, address(node), calling="FAST", destination="FAST").Status)


def refusing(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, refuse)


def test_a_move_passes_packed_pixels_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds, port = mammogram(picture(200, 180)), free_port()
    with holding(tmp_path, port, ds) as node, storescp(tmp_path / "got", port, "+xt") as destination:
        refusing(monkeypatch, OriginalAccess, "lend")
        refusing(monkeypatch, Retrieve, "as_syntax")
        assert moved(node, ds) == 0
        transcode(tmp_path / "0.dcm", tmp_path / "encoded", JPEGLSLossless)
        assert data_set_bytes(destination.only()) == data_set_bytes(tmp_path / "encoded")
        assert pixels_by_dcmtk(destination.only()) == ds.PixelData
        assert not list((node.store.root / "rendered").glob("*.making"))


def test_a_get_passes_packed_pixels_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """This requires that the presentation context has that transfer syntax. Otherwise the received bytes are sent."""
    ds = mammogram(picture(200, 180))
    with holding(tmp_path, 1, ds) as node:
        identifier = client.image_identifier(ds.StudyInstanceUID)
        refusing(monkeypatch, Retrieve, "as_syntax")
        status = client.get(
            identifier, address(node), calling="FAST", sop_classes=[MAMMOGRAPHY], receiver=receiver
        ).Status
        assert status == 0
        assert receiver.received[ds.SOPInstanceUID].read_bytes()[-72000:] == ds.PixelData
        receiver.received.clear()
        refusing(monkeypatch, OriginalAccess, "lend")
        ran = getscu(
            address(node),
            tmp_path / "got",
            "-S",
            "STUDY",
            f"StudyInstanceUID={ds.StudyInstanceUID}",
            calling="FAST",
            options="+xt",
        )
        assert ran.code == 0, ran.said
        transcode(tmp_path / "0.dcm", tmp_path / "encoded", JPEGLSLossless)
        [got] = (tmp_path / "got").iterdir()
        assert pixels_by_dcmtk(got) == ds.PixelData


@pytest.mark.slow
def test_a_receiver_without_jpeg_ls_gets_the_received_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file arrives byte for byte. After the first negotiation, no file is prepared in vain."""
    study, port, tries = generate_uid(), free_port(), []
    images = [mammogram(picture(60, 50, seed=seed), StudyInstanceUID=study) for seed in range(7)]
    original = OriginalAccess.write_packed_form
    monkeypatch.setattr(OriginalAccess, "write_packed_form", lambda *of: tries.append(of[1]) or original(*of))
    with (
        holding(tmp_path, port, *images, syntax=ImplicitVRLittleEndian) as node,
        storescp(tmp_path / "got", port, "+xi") as destination,
    ):
        assert moved(node, images[0]) == 0
        got = {data_set_bytes(file) for file in destination.files()}
        assert got == {data_set_bytes(tmp_path / f"{number}.dcm") for number in range(7)}
        assert len(tries) == 4
        assert not list((node.store.root / "rendered").glob("*.making"))


@pytest.mark.slow
def test_amended_and_unsuitable_originals_are_unpacked(tmp_path: Path) -> None:
    study, port = generate_uid(), free_port()
    gaps = mammogram(picture(60, 50) * np.uint16(13), bits=16, StudyInstanceUID=study)
    signed = mammogram(picture(60, 50), PixelRepresentation=1, StudyInstanceUID=study)
    with holding(tmp_path, port, gaps, signed) as node, storescp(tmp_path / "got", port, "+xa") as destination:
        changes = Dataset()
        changes.AccessionNumber = "NEW"
        assert moved(node, gaps) == 0
        received = {one.SOPInstanceUID: one for one in map(dcmread, destination.files())}
        assert received[gaps.SOPInstanceUID].file_meta.TransferSyntaxUID == JPEGLSLossless
        assert received[signed.SOPInstanceUID].file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert received[signed.SOPInstanceUID].PixelData == signed.PixelData
    plain, port = mammogram(picture(60, 50)), free_port()
    (tmp_path / "other").mkdir()
    with (
        holding(tmp_path / "other", port, plain) as node,
        storescp(tmp_path / "amended", port, "+xt") as destination,
    ):
        node.index.amendments.make(
            AmendmentKind.STUDY, plain.StudyInstanceUID, changes.to_json_dict(), reason="wrong", who="test"
        )
        assert moved(node, plain) == 0
        assert dcmread(destination.only()).AccessionNumber == "NEW"
        assert pixels_by_dcmtk(destination.only()) == plain.PixelData


def test_a_damaged_packed_original_is_not_sent(tmp_path: Path) -> None:
    ds, port = mammogram(picture(200, 180)), free_port()
    with holding(tmp_path, port, ds) as node, storescp(tmp_path / "got", port, "+xt") as destination:
        [instance] = node.index.by_keys([1])
        held = node.index.originals.of_digest(instance.original_digest)
        assert held is not None
        assert held.form is OriginalForm.PACKED
        path = node.store.path(held.object_digest)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert moved(node, ds) == 0xA702
        assert destination.files() == []
        assert [one.entry.outcome for one in node.index.trail.records() if one.entry.action == "damage"] == ["lost"]
