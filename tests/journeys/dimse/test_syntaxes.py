"""Proves that every transfer syntax is accepted and kept, and that each peer gets its preferred one with the same
pixels.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    MPEG4HP41,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import VideoEndoscopicImageStorage

from benchmarks.ingest import free_port
from node.app import Node
from node.archive.serve.retrieve import Retrieve
from node.config import parse
from node.dimse.client import Address, image_identifier, move, store
from node.dimse.sop_classes import STORAGE_CLASSES, TRANSFER_SYNTAXES, WIRE_SYNTAXES, in_order
from storage.dicom.dicomfile import accept_odd_values, file_meta, write_preamble
from storage.dicom.encapsulate import JPEG_XL_LOSSLESS
from storage.dicom.pixels import transcode
from storage.dicom.writing import encode
from storage.errors import ConfigError, PixelError
from storage.records import InstanceState
from tests.conftest import settings_for, wait_for
from tests.support import samples
from tests.support.peers import data_set_bytes, run, storescp

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")

COMPRESSED = {name: uid for name, uid in WIRE_SYNTAXES.items() if name not in ("explicit", "implicit")}
PRIVATE_CLASS = "1.3.6.1.4.1.99999.7.1"


@pytest.fixture(autouse=True, scope="module")
def pydicom_knows_jpeg_xl() -> None:
    accept_odd_values()


@contextmanager
def node(root: Path, destination: int = 1, **changes: Any) -> Iterator[Node]:
    peers = [{"ae_title": "MODALITY", "allow": ["echo", "store", "move", "get"]}]
    for name in (*WIRE_SYNTAXES, "original"):
        peers.append(
            {
                "ae_title": name.upper(),
                "host": "127.0.0.1",
                "port": destination,
                "allow": ["find", "move", "get"],
                "transfer_syntaxes": [name],
            }
        )
    settings = {"peers": peers, "archivist": {"enabled": False}, **changes}
    with Node(settings_for(root / "archive", **settings)) as running:
        yield running
    gc.collect()


def address(running: Node) -> Address:
    return Address("127.0.0.1", running.server.port, "LATENTPACS")


def send(running: Node, path: Path) -> int:
    statuses: list[int] = []
    store([path], address(running), calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    return statuses[0]


def native(path: Path, folder: Path) -> Dataset:
    """The file with native pixels, whatever its transfer syntax was."""
    target = folder / "native.dcm"
    transcode(path, target, ExplicitVRLittleEndian)
    return dcmread(target)


# --- the encodings ---


def multiframe(**changes: Any) -> Dataset:
    frames = np.stack([samples.breast(64, 48, seed=seed) for seed in range(3)])
    ds = samples.mammogram(frames[0], **changes)
    ds.NumberOfFrames = 3
    ds.PixelData = frames.astype("<u2").tobytes()
    return ds


def eight_bits() -> Dataset:
    ds = samples.mammogram(samples.breast(65, 33, bits=8), bits=8)
    pixels = np.frombuffer(ds.PixelData, "<u2").astype(np.uint8)
    ds.BitsAllocated, ds.PixelData = 8, pixels.tobytes() + b"\0"
    ds["PixelData"].VR = "OB"
    return ds


@pytest.mark.parametrize("make", [lambda: samples.mammogram(samples.breast(129, 97)), multiframe, eight_bits])
@pytest.mark.parametrize("name", COMPRESSED)
def test_pixels_come_back_and_nothing_else_changes(tmp_path: Path, name: str, make: Any) -> None:
    ds = make()
    source, target = samples.write(ds, tmp_path / "source.dcm"), tmp_path / "target.dcm"
    transcode(source, target, UID(COMPRESSED[name]))  # type: ignore[index]
    assert dcmread(target).file_meta.TransferSyntaxUID == COMPRESSED[name]  # type: ignore[index]
    back = native(target, tmp_path)
    length = len(ds.PixelData) // 2 * 2
    assert back.PixelData[:length] == ds.PixelData[:length]
    assert {e.tag: e.value for e in back if e.tag != 0x7FE00010} == {e.tag: e.value for e in ds if e.tag != 0x7FE00010}


@pytest.mark.parametrize(("name", "tool"), [("jpegls", "dcmdjpls"), ("rle", "dcmdrle")])
def test_dcmtk_decodes_what_we_encode(tmp_path: Path, name: str, tool: str) -> None:
    for number, ds in enumerate((samples.mammogram(samples.breast(129, 97)), multiframe())):
        source, target = samples.write(ds, tmp_path / f"{number}.dcm"), tmp_path / f"{number}.{name}"
        transcode(source, target, UID(COMPRESSED[name]))  # type: ignore[index]
        out = tmp_path / f"{number}.out"
        ran = run(tool, target, out)
        assert ran.code == 0, ran.said
        assert dcmread(out).PixelData == ds.PixelData


@pytest.mark.parametrize("name", ["jpegls", "jpeg2000", "rle"])
def test_gdcm_decodes_what_we_encode(tmp_path: Path, name: str) -> None:
    gdcm = pytest.importorskip("gdcm")
    ds = samples.mammogram(samples.breast(129, 97))
    source, target = samples.write(ds, tmp_path / "source.dcm"), tmp_path / "target.dcm"
    transcode(source, target, UID(COMPRESSED[name]))  # type: ignore[index]
    reader = gdcm.ImageReader()
    reader.SetFileName(str(target))
    assert reader.Read()
    decoded = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    assert decoded == ds.PixelData


@pytest.mark.parametrize(("bits", "above", "precision"), [(12, 0, 12), (10, 0, 10), (16, 0, 16), (12, 0x8000, 16)])
def test_htj2k_has_the_precision_of_bits_stored(tmp_path: Path, bits: int, above: int, precision: int) -> None:
    """Two decoders agree; bits above Bits Stored are kept."""
    pixels = samples.breast(65, 33, bits=bits) | np.uint16(above)
    source = samples.write(samples.mammogram(pixels, bits=bits), tmp_path / "source.dcm")
    transcode(source, tmp_path / "target.dcm", UID(COMPRESSED["htj2k"]))  # type: ignore[index]
    codestream = next(generate_frames(dcmread(tmp_path / "target.dcm").PixelData, number_of_frames=1))
    assert codestream[42] + 1 == precision
    for decode in (imagecodecs.htj2k_decode, imagecodecs.jpeg2k_decode):
        assert np.array_equal(decode(codestream), pixels)


def test_pixels_that_are_not_encoded(tmp_path: Path) -> None:
    """Signed, coloured and short pixels, and bits above Bits Stored that a codestream of 12 bits cannot hold."""
    signed = samples.mammogram(samples.breast(64, 64), PixelRepresentation=1)
    short = samples.mammogram(samples.breast(64, 64), Rows=65)
    coloured = samples.mammogram(samples.breast(64, 64), SamplesPerPixel=3)
    above = samples.mammogram(samples.breast(64, 64) | 0x8000)
    for ds in (signed, short, coloured, above):
        source = samples.write(ds, tmp_path / "source.dcm")
        with pytest.raises(PixelError):
            transcode(source, tmp_path / "target.dcm", UID(COMPRESSED["jpeg2000"]))


def test_an_encoder_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = imagecodecs.jpegls_encode
    monkeypatch.setattr(imagecodecs, "jpegls_encode", lambda frame, level: original(frame ^ 1, level=level))
    source = samples.write(samples.mammogram(samples.breast(64, 64)), tmp_path / "source.dcm")
    with pytest.raises(PixelError, match="does not decode to its original values"):
        transcode(source, tmp_path / "target.dcm", UID(COMPRESSED["jpegls"]))


# --- what is taken ---


def test_every_transfer_syntax_is_accepted_and_kept_verbatim(tmp_path: Path) -> None:
    """A data set without pixels can have any transfer syntax, and its bytes are returned unchanged."""
    report = samples.mammogram(samples.breast(64, 64))
    for keyword in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(report, keyword)
    with node(tmp_path) as running:
        for number, syntax in enumerate(TRANSFER_SYNTAXES):
            if syntax in ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"):
                continue  # deflated: pynetdicom's sender inflates
            report.SOPInstanceUID = f"1.2.3.{number + 1}"
            like = (
                UID(syntax) if UID(syntax) in (ImplicitVRLittleEndian, ExplicitVRBigEndian) else ExplicitVRLittleEndian
            )
            path = tmp_path / f"{number}.dcm"
            with path.open("wb") as out:
                write_preamble(out, file_meta(report.SOPClassUID, report.SOPInstanceUID, syntax))
                out.write(encode(report, like))
            assert send(running, path) == 0, syntax
            held = running.index.by_uid(report.SOPInstanceUID)
            assert held is not None
            assert held.transfer_syntax_uid == syntax
            assert data_set_bytes(running.store.held(held.original_digest)) == data_set_bytes(path)


@pytest.mark.parametrize("sop_class", [PRIVATE_CLASS, "1.2.840.10008.5.1.4.1.1.6"], ids=["private", "retired"])
def test_a_configured_private_class_and_a_retired_one_are_stored_and_sent(tmp_path: Path, sop_class: str) -> None:
    ds = samples.mammogram(samples.breast(64, 64), SOPClassUID=UID(sop_class))
    path = samples.write(ds, tmp_path / "image.dcm")
    got: list[str] = []
    entity = AE("ORIGINAL")
    entity.add_supported_context(sop_class)

    def keep(event: Any) -> int:
        got.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    assert PRIVATE_CLASS not in STORAGE_CLASSES
    port = free_port()
    with node(tmp_path, port, node={"storage_classes": [PRIVATE_CLASS]}) as running:
        assert send(running, path) == 0
        server: Any = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
        final = move(
            image_identifier(ds.StudyInstanceUID), address(running), calling="ORIGINAL", destination="ORIGINAL"
        )
        server.shutdown()
    assert (final.Status, got) == (0, [ds.SOPInstanceUID])


# --- what is sent ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"),
    [("jpegls", "+xt"), ("jpeg2000", "+xv"), ("rle", "+xr"), ("explicit", "+xe"), ("implicit", "+xi")],
)
def test_dcmtk_gets_what_its_entry_prefers(tmp_path: Path, name: str, option: str) -> None:
    ds = samples.mammogram(samples.breast(200, 180))
    path, port = samples.write(ds, tmp_path / "image.dcm"), free_port()
    with node(tmp_path, port) as running, storescp(tmp_path / "got", port, option) as destination:
        assert send(running, path) == 0
        final = move(
            image_identifier(ds.StudyInstanceUID), address(running), calling=name.upper(), destination=name.upper()
        )
        assert final.Status == 0
        got = destination.only()
        assert dcmread(got).file_meta.TransferSyntaxUID == WIRE_SYNTAXES[name]  # type: ignore[index]
        assert native(got, tmp_path).PixelData == ds.PixelData


@pytest.mark.slow
def test_a_receiver_that_takes_none_of_it_gets_little_endian(tmp_path: Path) -> None:
    ds = samples.mammogram(samples.breast(200, 180))
    path, port = samples.write(ds, tmp_path / "image.dcm"), free_port()
    with node(tmp_path, port) as running, storescp(tmp_path / "got", port, "+xi") as destination:
        assert send(running, path) == 0
        final = move(image_identifier(ds.StudyInstanceUID), address(running), calling="HTJ2K", destination="HTJ2K")
        assert final.Status == 0
        assert dcmread(destination.only()).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


def test_pixels_that_the_preferred_encoding_does_not_fit_go_out_as_they_are(tmp_path: Path) -> None:
    ds = samples.mammogram(samples.breast(200, 180), PixelRepresentation=1)
    path, port = samples.write(ds, tmp_path / "image.dcm"), free_port()
    with node(tmp_path, port) as running, storescp(tmp_path / "got", port, "+xa") as destination:
        assert send(running, path) == 0
        final = move(image_identifier(ds.StudyInstanceUID), address(running), calling="JPEGLS", destination="JPEGLS")
        assert final.Status == 0
        assert dcmread(destination.only()).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


@pytest.mark.slow
def test_a_lossy_original_is_sent_as_it_is(tmp_path: Path) -> None:
    ds = eight_bits()
    ds.Rows, ds.Columns = 64, 64
    codestream = imagecodecs.jpeg8_encode(samples.breast(64, 64, bits=8).astype(np.uint8))
    ds.PixelData = encapsulate([bytes(codestream)])
    ds["PixelData"].is_undefined_length = True
    path, port = tmp_path / "lossy.dcm", free_port()
    with path.open("wb") as out:
        write_preamble(out, file_meta(ds.SOPClassUID, ds.SOPInstanceUID, JPEGBaseline8Bit))
        out.write(encode(ds, ExplicitVRLittleEndian))
    with node(tmp_path, port) as running, storescp(tmp_path / "got", port, "+xa") as destination:
        assert send(running, path) == 0
        final = move(image_identifier(ds.StudyInstanceUID), address(running), calling="JPEGLS", destination="JPEGLS")
        assert final.Status == 0
        assert data_set_bytes(destination.only()) == data_set_bytes(path)


@pytest.mark.slow
@pytest.mark.parametrize(("calling", "expected"), [("JPEGLS", "jpegls"), ("HTJ2K", "htj2k"), ("MODALITY", "explicit")])
def test_get_in_one_context_with_many_syntaxes(tmp_path: Path, calling: str, expected: str) -> None:
    """The acceptor chooses one transfer syntax for the context (PS3.8 9.3.3.2): the one that the caller's entry
    prefers."""
    ds = samples.mammogram(samples.breast(200, 180))
    path = samples.write(ds, tmp_path / "image.dcm")
    got: list[Dataset] = []

    def keep(event: Any) -> int:
        target = tmp_path / "got.dcm"
        target.write_bytes(event.encoded_dataset())
        got.append(dcmread(target))
        return 0

    entity = AE(calling)
    entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.3")
    entity.add_requested_context(samples.MAMMOGRAPHY, list(WIRE_SYNTAXES.values()))
    with node(tmp_path) as running:
        assert send(running, path) == 0
        assoc = entity.associate(
            *("127.0.0.1", running.server.port),
            ext_neg=[build_role(samples.MAMMOGRAPHY, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )
        answers = list(assoc.send_c_get(image_identifier(ds.StudyInstanceUID), "1.2.840.10008.5.1.4.1.2.2.3"))
        assoc.release()
    assert answers[-1][0].Status == 0
    assert [one.file_meta.TransferSyntaxUID for one in got] == [WIRE_SYNTAXES[expected]]  # type: ignore[index]
    assert native(tmp_path / "got.dcm", tmp_path).PixelData == ds.PixelData


@pytest.mark.parametrize("calling", ["MODALITY", "JPEGLS"])
def test_video_that_shares_its_context_with_little_endian(tmp_path: Path, calling: str) -> None:
    """Nobody can send it in little endian, so the context is accepted for the video."""
    video = samples.mammogram(samples.breast(64, 64), SOPClassUID=VideoEndoscopicImageStorage)
    video.PixelData = encapsulate([bytes(100)])
    video["PixelData"].is_undefined_length = True
    sent, got = tmp_path / "video.dcm", []
    with sent.open("wb") as out:
        write_preamble(out, file_meta(video.SOPClassUID, video.SOPInstanceUID, MPEG4HP41))
        out.write(encode(video, ExplicitVRLittleEndian))
    entity = AE(calling)
    entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.3")
    entity.add_requested_context(
        VideoEndoscopicImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian, MPEG4HP41]
    )

    def keep(event: Any) -> int:
        got.append(bytes(event.encoded_dataset(include_meta=False)))
        return 0

    with node(tmp_path) as running:
        if calling == "MODALITY":
            assoc = entity.associate("127.0.0.1", running.server.port)
            assert assoc.send_c_store(sent).Status == 0
            assoc.release()
        else:
            assert send(running, sent) == 0
        assoc = entity.associate(
            *("127.0.0.1", running.server.port),
            ext_neg=[build_role(VideoEndoscopicImageStorage, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )
        answers = list(assoc.send_c_get(image_identifier(video.StudyInstanceUID), "1.2.840.10008.5.1.4.1.2.2.3"))
        assoc.release()
    assert answers[-1][0].Status == 0
    assert got == [data_set_bytes(sent)]


@pytest.mark.slow
def test_jpeg_xl_is_taken_and_comes_back_decoded(tmp_path: Path) -> None:
    ds = samples.mammogram(samples.breast(200, 180))
    path, port = tmp_path / "image.dcm", free_port()
    transcode(samples.write(ds, tmp_path / "native.dcm"), path, UID(JPEG_XL_LOSSLESS))
    with node(tmp_path, port) as running, storescp(tmp_path / "got", port, "+xe") as destination:
        assert send(running, path) == 0
        final = move(
            image_identifier(ds.StudyInstanceUID), address(running), calling="ORIGINAL", destination="ORIGINAL"
        )
        assert final.Status == 0
        assert dcmread(destination.only()).PixelData == ds.PixelData


@pytest.mark.slow
def test_a_requester_hears_from_us_while_an_image_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding lasts until the requester has received three pending responses."""
    ds = samples.mammogram(samples.breast(200, 180))
    path, port, patience = samples.write(ds, tmp_path / "image.dcm"), free_port(), threading.Event()
    entity = AE("MODALITY")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.2.2.2")
    original = Retrieve.as_syntax

    def slow(*arguments: Any) -> Any:
        assert patience.wait(timeout=300)
        return original(*arguments)

    monkeypatch.setattr(Retrieve, "as_syntax", slow)
    with node(tmp_path, port, node={"keep_alive": 0.1}) as running, storescp(tmp_path / "got", port, "+xa"):
        assert send(running, path) == 0
        assoc = entity.associate("127.0.0.1", running.server.port)
        statuses = []
        for status, _ in assoc.send_c_move(
            image_identifier(ds.StudyInstanceUID), "JPEGLS", "1.2.840.10008.5.1.4.1.2.2.2"
        ):
            statuses.append(status.Status)
            if len(statuses) == 3:
                patience.set()
        assoc.release()
    assert statuses[-1] == 0
    assert set(statuses[:-1]) == {0xFF00}
    assert len(statuses) >= 4


@pytest.mark.slow
def test_a_damaged_jpeg_xl_is_kept_with_a_warning_and_a_sound_one_is_reconstructed(tmp_path: Path) -> None:
    ds = samples.mammogram(samples.breast(320, 288))
    sound = tmp_path / "sound.dcm"
    transcode(samples.write(ds, tmp_path / "native.dcm"), sound, UID(JPEG_XL_LOSSLESS))
    damaged = tmp_path / "damaged.dcm"
    other = dcmread(sound)
    other.SOPInstanceUID = "1.2.3.4"
    with damaged.open("wb") as out:
        body = encode(other, ExplicitVRLittleEndian)
        at = body.index(b"\xe0\x7f\x10\x00") + 80
        write_preamble(out, file_meta(other.SOPClassUID, other.SOPInstanceUID, JPEG_XL_LOSSLESS))
        out.write(body[:at] + bytes(200) + body[at + 200 :])
    with node(tmp_path, archivist={"enabled": True, "poll": 0.1}) as running:
        assert [send(running, path) for path in (sound, damaged)] == [0x0000, 0xB007]

        def at_rest() -> Any:
            held = running.index.by_uid(str(ds.SOPInstanceUID))
            return held if held is not None and held.state is not InstanceState.RECEIVED else None

        held = wait_for(at_rest, what="at rest")
        assert held.state is InstanceState.VERIFIED, held.reason


def test_the_order() -> None:
    lossless, lossy = str(ExplicitVRLittleEndian), str(JPEGBaseline8Bit)
    implicit = str(ImplicitVRLittleEndian)
    assert in_order((), lossless) == [lossless, implicit]
    assert in_order((), lossy) == [lossy, lossless, implicit]
    assert in_order(("htj2k", "original"), lossless) == [WIRE_SYNTAXES["htj2k"], lossless, implicit]
    assert in_order(("rle",), lossy) == [lossy, WIRE_SYNTAXES["rle"], lossless, implicit]
    assert in_order(("implicit",), lossless) == [implicit, lossless]


@pytest.mark.parametrize(
    "raw",
    [
        {"peers": [{"ae_title": "A", "transfer_syntaxes": ["jpeg"]}]},
        {"node": {"storage_classes": ["Secondary Capture"]}},
    ],
)
def test_mistakes(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"transfer_syntaxes|storage_classes"):
        parse(raw, "t")
