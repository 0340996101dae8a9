"""Holds images with real bases and renditions in an archive without a network, and makes their derived objects."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import Column, Engine, select

from node.archive.encode.rendition_writer import new_rendition
from node.archive.intake.ingest import Ingest, Receipt
from node.archive.serve.derived_object import DerivedParts, make_object
from node.codec.encode.encode_request import EncodedRendition, EncodeRequest, EncodeResult, ReverifyRequest
from node.codec.patches import cells_under, cut, encode_patches
from node.codec.rendering import Rendering
from node.config import parse
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Installed
from storage.dicom.dicomfile import HeaderBytes
from storage.dicom.pixels import integer_pixels, pixel_digest
from storage.dicom.writing import encode
from storage.errors import WorkerDied
from storage.formats import coders
from storage.formats.payload import Base, Rendition, encode_base, encode_rendition
from storage.records import Applied, InstanceState, OperatingPoint, StoredRendition, Trial, Verdict
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.samples import breast, mammogram, write

CATALOGUE = Catalogue(parse({"reconstruct": {"upscaler": "bicubic"}}, "test").reconstruct)
POINT = OperatingPoint(2, "jpegls")


class FailingDecoders(InlineWorkers):
    """Decoders that crash on every request, or fail with another error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error or WorkerDied("killed by signal 11")

    def submit(self, request: object, priority: object) -> Future[str]:
        done: Future[str] = Future()
        done.set_exception(self.error)
        return done


class InlinePool(InlineWorkers):
    """A pool that answers every kind of request at once. ``first`` is called with each request, and may raise an
    error."""

    def __init__(self, first: Callable[[object], object] = lambda request: None) -> None:
        self.first = first

    def submit(self, request: object, priority: object) -> Future[Any]:  # type: ignore[override]
        done: Future[Any] = Future()
        try:
            self.first(request)
            done.set_result(_answer(request))
        except Exception as error:
            done.set_exception(error)
        return done


class PoolThatOutlastsLeases(InlinePool):
    """A pool that answers requests of a kind once their lease was renewed. For those who wait, each look takes an hour.

    ``until``: the column with the end of the lease, in a table of one row.
    """

    def __init__(self, kind: type, engine: Engine, until: Column[float], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._kind, self._engine, self._until = kind, engine, until
        hours = itertools.count(0, 3600)
        monkeypatch.setattr("node.workers.waiting.time", SimpleNamespace(monotonic=lambda: next(hours)))

    def _lease(self) -> float:
        with self._engine.connect() as connection:
            return float(connection.execute(select(self._until)).scalar_one())

    def submit(self, request: object, priority: object) -> Future[Any]:
        done = super().submit(request, priority)
        return _AfterRenewal(done, self._lease) if isinstance(request, self._kind) else done


class _AfterRenewal(Future[Any]):
    def __init__(self, answer: Future[Any], lease: Callable[[], float]) -> None:
        super().__init__()
        self._answer, self._lease, self._end, self._asked = answer, lease, lease(), 0

    def result(self, timeout: float | None = None) -> Any:
        self._asked += 1
        assert self._asked < 9, "the lease is not renewed"
        if self._lease() == self._end:
            raise TimeoutError
        return self._answer.result()


def _answer(request: Any) -> Any:
    if isinstance(request, EncodeRequest | ReverifyRequest):
        return encoded(request)
    return request.answer(CATALOGUE)


@dataclass(frozen=True)
class Pair:
    """A base and a rendition of a received image, as they are stored."""

    base: Base
    rendition: Rendition

    @property
    def base_bytes(self) -> bytes:
        return encode_base(self.base)

    @property
    def rendition_bytes(self) -> bytes:
        return encode_rendition(self.rendition)


def small(uid: str, **changes: Any) -> Dataset:
    """A mammogram of 64 x 48 pixels."""
    return mammogram(breast(64, 48), SOPInstanceUID=uid, **changes)


def pair_of(ds: Dataset, received: bytes, derived_uid: str, *, passed: bool = True, patches: bytes = b"") -> Pair:
    """A black base of an image, and a bicubic reconstruction with the digests of its actual pixels."""
    header = HeaderBytes(str(ExplicitVRLittleEndian), encode(ds[:0x7FE00010], ExplicitVRLittleEndian), b"")
    coded = coders.encode(np.zeros((-(-ds.Rows // 2), -(-ds.Columns // 2)), np.uint16), POINT)
    digest = hashlib.sha256(received).hexdigest()
    base = Base(POINT, ds.Rows, ds.Columns, 12, 0, 4095, None, 0.0, 1.0, 0.0, digest, "0" * 64, "OW", header, coded)
    figures = {"structure_psnr_db": 40.0, "structure_fsim_mean": 0.99, "structure_fsim_p5": 0.98}
    verdict = Verdict(40.0, 0.99, 0.98, 1, figures, gated=passed)
    upscaler = CATALOGUE.configured()
    made = Rendition(
        *(hashlib.sha256(encode_base(base)).hexdigest(), str(ds.SOPInstanceUID), derived_uid),
        *(
            "bicubic",
            "LPACS_BICUBIC",
            False,
            upscaler.weights_digest,
            upscaler.numerics,
            1,
            1,
            "0" * 64,
            "0" * 64,
            verdict,
        ),
        patches=patches,
        extra={"minimum": [0, 0], "maximum": [4095, 4095]},
    )
    rendering = Rendering.of(base, made, CATALOGUE)
    drawn, plain = (pixel_digest(rendering.pixels(draw=draw)) for draw in (True, False))
    return Pair(base, replace(made, output_digest=drawn, structure_digest=plain))


def encoded(request: EncodeRequest | ReverifyRequest) -> EncodeResult:
    """The answer of an encoder that accepts a black base for every image. The same request gets the same answer."""
    received, ds = request.original.read_bytes(), dcmread(request.original)
    patches = b""
    if request.regions:
        cells = cells_under(request.regions, ds.Rows, ds.Columns)
        patches = encode_patches(cut(integer_pixels(request.original), cells))
    number = int(hashlib.sha256(received + patches).hexdigest()[:24], 16)
    pair = pair_of(ds, received, f"2.25.{number}", passed=request.thresholds is not None, patches=patches)
    upscaler = Installed.of(CATALOGUE.configured())
    trial = Trial(str(POINT), upscaler.upscaler, len(pair.base_bytes), (), 0.1)
    return EncodeResult(
        (trial,), EncodedRendition(pair.rendition, POINT, pair.base_bytes, pair.rendition_bytes, upscaler)
    )


def hold_image(bench: ArchiveParts, ds: Dataset, derived_uid: str, *, passed: bool = True) -> bytes:
    """Receive an image of 12 bits and give it a rendition. Returns the received bytes."""
    received = write(ds, bench.root / "received.dcm").read_bytes()
    receive(bench, received, ds)
    claim = bench.index.claim("test", 60)
    assert claim is not None
    pair = pair_of(ds, received, derived_uid, passed=passed)
    bench.hot.put(pair.base_bytes)
    data = pair.rendition_bytes
    row = new_rendition(pair.rendition, POINT, len(pair.base_bytes), bench.hot.put(data), len(data))
    assert bench.index.finish_with(claim, InstanceState.VERIFIED if passed else InstanceState.MEASURED, row)
    return received


def receive(
    bench: ArchiveParts,
    data: bytes,
    ds: Dataset,
    decoders: Any = None,
    arrived: Callable[[str], None] = lambda _: None,
) -> Receipt:
    """Let a file arrive from a peer, announced with the UIDs of ``ds``."""
    path = bench.hot.spool / "arriving.dcm"
    path.write_bytes(data)
    ingest = Ingest(bench.index, bench.hot, bench.originals, decoders or InlineWorkers(), arrived)
    uids = {"sop_class": str(ds.SOPClassUID), "sop_instance": str(ds.SOPInstanceUID)}
    return ingest.receive(path, **uids, calling_aet="MODALITY")


def derived_object(bench: ArchiveParts, made: StoredRendition, target: Path, amended: tuple[Applied, ...] = ()) -> Path:
    """The object that a peer gets for a rendition."""
    base, rendition = bench.hot.held(made.base_digest), bench.hot.held(made.rendition_digest)
    parts = DerivedParts(base, rendition, made.payload_bytes, made.verified_at, applied=amended)
    make_object(parts, target, _answer)
    return target


def just_before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, do: Callable[[], Any], *, times: int = 1
) -> None:
    """Call ``do`` right before each of the next calls of a method, as another thread might act. The method then
    runs."""
    method, left = getattr(owner, name), [times]

    def beaten(*args: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            do()
        return method(*args, **named)

    monkeypatch.setattr(owner, name, beaten)
