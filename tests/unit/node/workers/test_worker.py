"""Proves what a worker answers to each request, called in this process."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLSLossless

from node.upscalers.protocol import Installed
from node.workers import requests, worker
from node.workers.auditing import Audited, AuditRequest
from node.workers.requests import (
    CheckRequest,
    CompareRequest,
    DigestRequest,
    ModelRequest,
    PackRequest,
    ReconstructRequest,
    RestoreRequest,
    TranscodeRequest,
    UnfinishedObject,
)
from node.workers.worker import answer
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import pixel_digest
from storage.errors import ModelMissing, ObjectDamaged, OutOfMemory, RenditionMismatch
from storage.formats.payload import encode_rendition
from tests.support.coded_images import CATALOGUE, pair_of
from tests.support.samples import breast, mammogram, rle_file, write

UID, DERIVED = "1.2.3.1", "2.25.7"
PIXELS = breast(256, 256)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the state of a worker after ``start``, which would limit and slow down this process."""
    monkeypatch.setattr(worker, "_catalogue", CATALOGUE)


@pytest.fixture
def received(tmp_path: Path) -> Path:
    return write(mammogram(PIXELS, SOPInstanceUID=UID), tmp_path / "received.dcm")


class Stored:
    """The files of an image, its base and its rendition."""

    def __init__(self, folder: Path, received: Path) -> None:
        self.folder, self.received = folder, received
        self.pair = pair_of(dcmread(received), received.read_bytes(), DERIVED)
        self.base, self.rendition = folder / "base", folder / "rendition"
        self.base.write_bytes(self.pair.base_bytes)
        self.rendition.write_bytes(self.pair.rendition_bytes)

    def audit(self, original: Path | None, digest: str = "") -> Audited:
        found = answer(AuditRequest(self.base, self.rendition, original, digest))
        assert isinstance(found, Audited)
        return found


@pytest.fixture
def stored(tmp_path: Path, received: Path) -> Stored:
    return Stored(tmp_path, received)


# --- reconstructions ---


def test_both_objects_of_a_rendition_get_their_pixels_behind_what_is_there(stored: Stored) -> None:
    made = stored.pair.rendition
    for draw, digest in ((True, made.output_digest), (False, made.structure_digest)):
        target = UnfinishedObject(stored.folder / f"object {draw}", b"trailer")
        target.path.write_bytes(b"header")
        answer(ReconstructRequest(stored.base, stored.rendition, target, draw))
        data = target.path.read_bytes()
        assert (data[:6], data[-7:]) == (b"header", b"trailer")
        assert pixel_digest(np.frombuffer(data[6:-7], "<u2").reshape(256, 256)) == digest


def test_pixels_that_were_not_verified_are_never_written(stored: Stored) -> None:

    stored.rendition.write_bytes(encode_rendition(replace(stored.pair.rendition, output_digest="0" * 64)))
    target = UnfinishedObject(stored.folder / "drawn", b"")
    with pytest.raises(RenditionMismatch, match=f"reconstruction of {DERIVED} has pixel digest "):
        answer(ReconstructRequest(stored.base, stored.rendition, target))
    assert not target.path.exists()


def test_an_audit_measures_only_against_the_received_bytes(stored: Stored) -> None:
    digest = hashlib.sha256(stored.received.read_bytes()).hexdigest()
    without = stored.audit(None)
    assert (without.same, without.now, without.original_whole) == (True, None, True)
    other = stored.audit(stored.received, "0" * 64)
    assert (other.same, other.now, other.original_whole) == (True, None, False)
    whole = stored.audit(stored.received, digest)
    assert whole.now is not None
    assert whole.now.psnr_db < 40
    assert whole.recorded == stored.pair.rendition.verdict


def test_the_configured_model_and_one_by_its_digest() -> None:
    configured = answer(ModelRequest())
    assert isinstance(configured, Installed)
    assert configured.upscaler == "bicubic"
    assert answer(ModelRequest("bicubic", configured.weights_digest)) == configured
    with pytest.raises(ModelMissing, match=f"bicubic weights {'0' * 64} are not installed"):
        answer(ModelRequest("bicubic", "0" * 64))


# --- decoders ---


def test_a_codestream_is_sound_or_has_a_reason(tmp_path: Path) -> None:
    broken = rle_file(mammogram(breast(64, 48)), tmp_path / "rle.dcm", [b"\0\0", b"\0\0"])
    assert answer(CheckRequest(broken)) != ""
    assert answer(CheckRequest(write(mammogram(breast(64, 48)), tmp_path / "native.dcm"))) == ""


def test_the_digest_is_that_of_the_stored_values(received: Path) -> None:
    assert answer(DigestRequest(received)) == pixel_digest(PIXELS)


def test_files_are_the_same_or_different(received: Path, tmp_path: Path) -> None:
    transcoded = tmp_path / "jpegls.dcm"
    answer(TranscodeRequest(received, transcoded, str(JPEGLSLossless)))
    with opened(transcoded) as file:
        assert file.transfer_syntax == JPEGLSLossless
    assert answer(CompareRequest(received, transcoded))
    ds = dcmread(received)
    ds.KVP = "31"
    assert not answer(CompareRequest(received, write(ds, tmp_path / "other.dcm")))


def test_a_packed_original_restores_its_bytes_or_nothing_counts(received: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(received.read_bytes()).hexdigest()
    packed, restored = tmp_path / "packed", tmp_path / "restored"
    answer(PackRequest(received, digest, packed, "jpegls"))
    assert packed.stat().st_size < received.stat().st_size
    answer(RestoreRequest(packed, digest, restored))
    assert restored.read_bytes() == received.read_bytes()
    with pytest.raises(ObjectDamaged):
        answer(RestoreRequest(packed, "0" * 64, restored))


# --- memory ---


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
    ids=["numpy", "torch"],
)
def test_too_little_memory_is_an_error_of_the_image(
    error: Exception, received: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(requests, "integer_pixels", fail)
    with pytest.raises(OutOfMemory, match="DigestRequest takes more memory than a worker may have"):
        answer(DigestRequest(received))


def test_other_errors_are_raised_as_they_are(received: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(requests, "integer_pixels", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        answer(DigestRequest(received))
