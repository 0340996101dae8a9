"""Proves that small files that would expand to very large ones are kept or refused, and never expanded."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from node.workers.requests import CheckRequest
from storage.dicom.codestreams import CodestreamHeader, check_pixels, codestream_header
from storage.dicom.content import same_content
from storage.dicom.decode_limits import DecodeLimits, decode_limits, set_decode_limits
from storage.dicom.dicomfile import opened
from storage.dicom.encapsulate import JPEG_XL_LOSSLESS, register_newer_syntaxes
from storage.dicom.pixels import decode_frame, integer_pixels, transcode
from storage.dicom.writing import encode
from storage.errors import InflatesTooFar, PayloadError, PixelError, TooManyPixels, Unparseable
from storage.formats import coders
from storage.formats.packed_original import pack_original
from storage.records import InstanceState, OperatingPoint, ReasonCode
from tests.conftest import Archive, settings_for
from tests.support.raw_sender import RawSender
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write, write_body

HUGE = 65535


@pytest.fixture(autouse=True)
def _bounds_of_this_process() -> Iterator[None]:
    before = decode_limits()
    yield
    set_decode_limits(before)


def sof(marker: int, rows: int, columns: int) -> bytes:
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 11, 16, rows, columns, 1) + b"\x01\x11\x00"
    return (
        b"\xff\xd8"
        + b"\xff\xe0\x00\x04ab"
        + frame
        + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
        + bytes(60)
        + b"\xff\xd9"
    )


def siz(rows: int, columns: int, samples: int = 1) -> bytes:
    head = struct.pack(
        ">4sHHIIIIIIIIH", b"\xff\x4f\xff\x51", 38 + 3 * samples, 0, columns, rows, 0, 0, columns, rows, 0, 0, samples
    )
    coding = b"\xff\x52\x00\x0c\x00\x00\x00\x01\x00\x05\x04\x04\x00\x01\xff\x5c\x00\x13\x40" + b"\x40" * 16
    return (
        head
        + b"\x0b\x01\x01" * samples
        + coding
        + b"\xff\x90\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x01\xff\x93"
        + b"\x80" * 40
        + b"\xff\xd9"
    )


def jp2(codestream: bytes) -> bytes:
    decoy = siz(8, 8)  # a small size in a box that no decoder reads
    boxes = [(b"jP  ", b"\r\n\x87\n"), (b"uuid", bytes(16) + decoy), (b"jp2c", codestream)]
    return b"".join(struct.pack(">I4s", 8 + len(content), kind) + content for kind, content in boxes)


def jxl(rows: int, columns: int) -> bytes:
    """A bare SizeHeader (ISO/IEC 18181-1 D.2): not small, 30 bits for each side, no ratio."""
    bits = 0b0 | 0b11 << 1 | (rows - 1) << 3 | 0 << 33 | 0b11 << 36 | (columns - 1) << 38
    return b"\xff\x0a" + bits.to_bytes(12, "little") + bytes(40)


def jxl_container(codestream: bytes, *, parts: bool) -> bytes:
    kind, content = (b"jxlp", bytes(4) + codestream) if parts else (b"jxlc", codestream)
    head = b"\x00\x00\x00\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 20, b"ftyp") + b"jxl \0\0\0\0jxl "
    return head + struct.pack(">I4s", 0, kind) + content


def rle(size: int) -> bytes:
    segment = b"\x81\x00" * (size // 2)
    return struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment + segment


BOMBS = {
    "JPEG 2000": (JPEG2000Lossless, siz(HUGE, HUGE)),
    "JPEG 2000 of many samples": (JPEG2000Lossless, siz(1000, 1000, 16000)),
    "JPEG 2000 in a container": (JPEG2000Lossless, jp2(siz(HUGE, HUGE))),
    "HTJ2K": (HTJ2KLossless, siz(HUGE, HUGE)),
    "JPEG-LS": (JPEGLSLossless, sof(0xF7, HUGE, HUGE)),
    "JPEG lossless": (JPEGLosslessSV1, sof(0xC3, HUGE, HUGE)),
    "JPEG baseline": (UID("1.2.840.10008.1.2.4.50"), sof(0xC0, HUGE, HUGE)),
    "JPEG extended": (UID("1.2.840.10008.1.2.4.51"), sof(0xC1, HUGE, HUGE)),
    "JPEG XL": (UID(JPEG_XL_LOSSLESS), jxl(HUGE, HUGE)),
    "JPEG XL in a container": (UID(JPEG_XL_LOSSLESS), jxl_container(jxl(HUGE, HUGE), parts=False)),
    "JPEG XL in a container of parts": (UID(JPEG_XL_LOSSLESS), jxl_container(jxl(HUGE, HUGE), parts=True)),
    "RLE": (RLELossless, rle(200_000)),
}


def image(rows: int, columns: int, codestream: bytes, syntax: UID, path: Path, frames: int = 1, bits: int = 12) -> Path:
    """A mammogram whose pixels are that codestream, whatever its header says of them."""
    register_newer_syntaxes()
    ds = mammogram(breast(64, 64))
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16 if bits > 8 else 8, bits, bits - 1
    if frames > 1:
        ds.NumberOfFrames = frames
    ds.PixelData = encapsulate([codestream] * frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    body = encode(ds, ExplicitVRLittleEndian)
    return write_body(body, path, sop_class=MAMMOGRAPHY, sop_instance=ds.SOPInstanceUID, syntax=syntax)


# --- pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("header", [64, HUGE])
def test_no_decoder_sees_what_announces_too_many_pixels(name: str, header: int, tmp_path: Path) -> None:
    """This holds for every way to a decoder, and whether the header or only the codestream is wrong. There is one
    sentence, and no memory is used."""
    syntax, codestream = BOMBS[name]
    path = image(header, header, codestream, syntax, tmp_path / "bomb.dcm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for use in (
        decode_frame,
        integer_pixels,
        lambda each: transcode(each, tmp_path / "native.dcm", ExplicitVRLittleEndian),
    ):
        with pytest.raises(TooManyPixels):
            use(path)
    assert "pixels" in CheckRequest(path).answer(None)
    assert not same_content(path, path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_later_frames_are_looked_at_too(tmp_path: Path) -> None:
    sound = bytes(imagecodecs.jpegls_encode(np.zeros((64, 64), np.uint16)))
    path = image(64, 64, sound, JPEGLSLossless, tmp_path / "frames.dcm", frames=2)
    path.write_bytes(path.read_bytes()[::-1].replace(sound[:10][::-1], sof(0xF7, HUGE, HUGE)[8:18][::-1], 1)[::-1])
    with pytest.raises(PixelError):
        transcode(path, tmp_path / "native.dcm", ExplicitVRLittleEndian)


def test_valid_images_of_many_pixels_are_bombs_too(tmp_path: Path) -> None:
    set_decode_limits(DecodeLimits(pixels=1_000_000))
    flat = np.zeros((1001, 1000), np.uint16)
    for syntax, code in ((JPEGLSLossless, imagecodecs.jpegls_encode(flat)), (JPEG2000Lossless, siz(1001, 1000))):
        with pytest.raises(TooManyPixels, match="1000000 that are decoded here"):
            decode_frame(image(1001, 1000, bytes(code), syntax, tmp_path / "large.dcm"))
    native = write(mammogram(np.zeros((1001, 1000), np.uint16)), tmp_path / "native.dcm")
    with pytest.raises(TooManyPixels, match="header says 1001 x 1000"):
        integer_pixels(native)
    set_decode_limits(DecodeLimits(pixels=1_001_000))
    assert integer_pixels(native).shape == (1001, 1000)


@pytest.mark.parametrize(
    ("rows", "samples", "size"), [(34, 3, "34 x 100 x 3"), (101, 1, "101 x 100"), (101, 0, "101 x 100")]
)
def test_each_sample_of_a_pixel_counts(rows: int, samples: int, size: str) -> None:
    """Three samples take three times the memory of one. 0 stands for an unknown number."""
    set_decode_limits(DecodeLimits(pixels=10_000))
    check_pixels("it has", rows - 1, 100, samples)
    with pytest.raises(TooManyPixels, match=f"it has {size} pixels, more than the 10000"):
        check_pixels("it has", rows, 100, samples)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (64, 65), (257, 512), (300, 1200)])
def test_sizes_are_those_of_the_encoders(shape: tuple[int, int]) -> None:
    pixels = np.zeros(shape, np.uint16)
    for made in (
        imagecodecs.png_encode(pixels),
        imagecodecs.jpegls_encode(pixels),
        imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="j2k"),
        imagecodecs.jpeg2k_encode(pixels, reversible=True, codecformat="jp2"),
        imagecodecs.htj2k_encode(pixels, reversible=True),
        imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=False),
        imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=True),
        imagecodecs.jpeg_encode(pixels.astype(np.uint8)),
        imagecodecs.ljpeg_encode(pixels),
    ):
        assert codestream_header(bytes(made))[:2] == shape


def test_a_codestream_cut_anywhere_is_a_pixel_error() -> None:
    for _, whole in BOMBS.values():
        for end in range(0, 60):
            with suppress(PixelError):
                assert isinstance(codestream_header(whole[:end]), CodestreamHeader)


@pytest.mark.parametrize("coder", ["png16", "jpegls", "jpegxl"])
def test_a_base_is_not_decoded_to_more_than_its_size(coder: str) -> None:
    point = OperatingPoint(1, coder)
    large = coders.encode(np.zeros((1000, 1000), np.uint16), point)
    with pytest.raises(PayloadError, match="holds"):
        coders.decode(large, point, (30, 30))


# --- memory of workers ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_needs_more_memory_than_a_worker_may_take_fails_alone() -> None:
    """The test runs in a process of its own, as a worker does, since the process keeps its memory limit."""
    ran = subprocess.run([sys.executable, "-c", _GREEDY], capture_output=True, text=True, timeout=300, check=False)
    assert ran.stdout.split("\n")[0] == "OutOfMemory", ran.stdout + ran.stderr
    assert "small: fine" in ran.stdout


_GREEDY = """
from node.config import ReconstructSettings
from node.workers import worker
from storage.dicom.decode_limits import DecodeLimits
worker.start(ReconstructSettings(), 0, DecodeLimits(memory=300_000_000))
class Greedy(int):
    def answer(self, catalogue):
        return len(bytearray(self))
try:
    print(worker.answer(Greedy(1_000_000_000)))
except Exception as error:
    print(type(error).__name__)
print("small: fine", worker.answer(Greedy(1_000_000)))
"""


# --- deflate ----------------------------------------------------------------------------------------------------


def deflated(path: Path, size: int, *, tag: int = 0x00291010, noise: int = 0) -> Path:
    """A deflated data set with one private element of ``size`` zeros. ``noise``: bytes before them that do not
    deflate."""
    ds = mammogram(breast(64, 64))
    random = np.random.default_rng(1).bytes(noise)
    head, behind = encode(ds[:0x00290010], ExplicitVRLittleEndian), encode(ds[0x00290010:], ExplicitVRLittleEndian)
    element = struct.pack("<HH2sHI", 0x0029, 0x0010, b"UN", 0, 6) + b"CREATE"
    element += struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"OB", 0, size + noise)
    engine, out = zlib.compressobj(9, wbits=-15), BytesIO()
    out.write(engine.compress(head + element + random))
    for start in range(0, size, 1 << 20):
        out.write(engine.compress(bytes(min(1 << 20, size - start))))
    out.write(engine.compress(behind) + engine.flush())
    return write_body(
        out.getvalue(),
        path,
        sop_class=MAMMOGRAPHY,
        sop_instance=ds.SOPInstanceUID,
        syntax=DeflatedExplicitVRLittleEndian,
    )


@pytest.fixture(scope="module")
def large_deflated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that inflates to 200 MB. Tests only read it."""
    return deflated(tmp_path_factory.mktemp("large") / "bomb.dcm", 200 << 20)


@pytest.mark.slow
def test_a_data_set_inflates_within_the_limits_only(large_deflated: Path) -> None:
    with pytest.raises(InflatesTooFar, match=r"limits\.ratio"), opened(large_deflated):
        pass
    set_decode_limits(DecodeLimits(ratio=10_000, inflated=100 << 20))
    with pytest.raises(InflatesTooFar, match=r"limits\.inflated"), opened(large_deflated):
        pass
    set_decode_limits(DecodeLimits(ratio=10_000))
    with opened(large_deflated) as file:
        assert len(file.data) > 200 << 20


@pytest.mark.slow
def test_a_large_data_set_is_inflated_into_a_file_and_outlined_without_its_bulk(large_deflated: Path) -> None:
    """200 MB take only a few MB of memory. The test runs in a process of its own, so that the peak is that of this data
    set."""
    ran = subprocess.run(
        [sys.executable, "-c", _OUTLINED, str(large_deflated)], capture_output=True, text=True, timeout=300, check=True
    )
    grown, name = ran.stdout.split()
    assert name == "Rows=64"
    assert int(grown) < 40_000, "KB"


_OUTLINED = """
import resource, sys
from pathlib import Path
from storage.dicom.decode_limits import DecodeLimits, set_decode_limits
from storage.dicom.dicomfile import opened
set_decode_limits(DecodeLimits(ratio=10_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with opened(Path(sys.argv[1])) as file:
    header = file.outline()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, f"Rows={header.Rows}")
"""


def test_an_outline_has_everything_but_bulk(tmp_path: Path) -> None:
    path = deflated(tmp_path / "some.dcm", 2 << 20)
    with opened(path) as file:
        outline, header = file.outline(), file.header()
    assert 0x00291010 in header
    assert 0x00291010 not in outline
    del header[0x00291010]
    assert outline == header


@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_a_cut_or_damaged_stream_is_unparseable(tmp_path: Path, cut: int) -> None:
    path = deflated(tmp_path / "some.dcm", 0, noise=20_000)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(Unparseable), opened(path):
        pass


def test_packing_leaves_a_bomb_as_it_is(tmp_path: Path) -> None:
    path = image(64, 64, rle(200_000), RLELossless, tmp_path / "bomb.dcm")
    with pytest.raises(PixelError):
        pack_original(path, "jpegls", "")


# --- at the door ------------------------------------------------------------------------------------------------


def test_peers_are_told(quiet_archive: Archive, large_deflated: Path, tmp_path: Path) -> None:
    """A data set that inflates too far is refused and leaves nothing. One that announces too many pixels is stored,
    with a warning."""
    code = image(64, 64, siz(HUGE, HUGE), JPEG2000Lossless, tmp_path / "code.dcm")
    sender = RawSender(quiet_archive, syntaxes=(DeflatedExplicitVRLittleEndian, JPEG2000Lossless))
    for path, syntax, status in (
        (large_deflated, DeflatedExplicitVRLittleEndian, 0xA701),
        (code, JPEG2000Lossless, 0xB007),
    ):
        meta = dcmread(path, stop_before_pixels=True).file_meta
        body = path.read_bytes()[144 + meta.FileMetaInformationGroupLength :]
        told = sender.send(body, sop_instance=meta.MediaStorageSOPInstanceUID, syntax=syntax)
        assert told.Status == status, told
        held = quiet_archive.node.index.by_uid(meta.MediaStorageSOPInstanceUID)
        assert (held is None) == (status == 0xA701)
    assert held is not None
    assert "limits.pixels" in held.reason
    sender.assoc.release()


def test_a_jpeg_of_many_scans_is_stopped(tmp_path: Path, receiver: Receiver) -> None:
    """A scan has 30 bytes, and a progressive decoder processes all pixels for it. 70 KB take half a minute here."""
    side, out = 4000, BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(out, "JPEG", progressive=True, quality=50)
    code = out.getvalue()
    last = code.rindex(b"\xff\xda")
    bomb = code[:last] + code[last:-2] * 500 + b"\xff\xd9"
    path = image(side, side, bomb, JPEGBaseline8Bit, tmp_path / "scans.dcm", bits=8)
    settings = settings_for(tmp_path / "archive", receiver.port, limits={"decoder_time": "1s"})
    with Node(settings) as node:
        statuses: list[int] = []
        address = Archive(node, receiver).address
        client.store([path], address, calling="MODALITY", each=lambda *sent: statuses.append(sent[1]))
        held = node.index.by_uid(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID))
        good = write(mammogram(breast(64, 64)), tmp_path / "good.dcm")
        client.store([good], address, calling="MODALITY", each=lambda *sent: statuses.append(sent[1]))
        assert statuses == [0xB007, 0]
        assert held is not None
        assert "limits.decoder_time" in held.reason
        with node.originals.borrowed(held.original_digest) as kept:
            assert bomb in kept.read_bytes()


def test_an_image_that_no_encoder_has_the_memory_for_is_not_tried(tmp_path: Path, receiver: Receiver) -> None:
    settings = settings_for(tmp_path / "archive", receiver.port, limits={"encoder_memory": "20MB"})
    with Node(settings) as node:
        archive = Archive(node, receiver)
        ds = mammogram(breast(640, 512))
        path = write(ds, tmp_path / "large.dcm")
        client.store([path], archive.address, calling="MODALITY", each=lambda *_: None)
        held = archive.settled(str(ds.SOPInstanceUID))
    assert (held.state, held.reason_code) == (InstanceState.EXACT, ReasonCode.LARGE)


@pytest.mark.parametrize("frames", [2**31 - 1, 10**20])
def test_a_header_that_lies_about_its_frames_is_kept(quiet_archive: Archive, frames: int) -> None:
    ds = mammogram(breast(64, 64))
    ds.Rows = ds.Columns = HUGE
    ds.NumberOfFrames = str(frames)
    sender = RawSender(quiet_archive)
    status = sender.send(encode(ds, ExplicitVRLittleEndian), sop_instance=ds.SOPInstanceUID)
    assert status.Status == 0xB007, status
    sender.assoc.release()
