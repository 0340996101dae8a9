"""Holds images with real bases and renditions in an archive without a network, and makes their derived objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from node.archive.encode.rendition_writer import new_rendition
from node.archive.intake.ingest import Ingest, Receipt
from node.archive.serve.derived_object import DerivedParts, make_object
from node.codec.rendering import rendered
from node.config import parse
from node.upscalers.catalogue import Catalogue
from node.workers.worker import ReconstructRequest, reconstruct_to_files
from storage.dicom.dicomfile import HeaderBytes, encode
from storage.errors import WorkerDied
from storage.formats import coders
from storage.formats.payload import Base, Rendition, encode_base, encode_rendition
from storage.records import InstanceState, OperatingPoint, StoredRendition, Verdict
from tests.support.archive_parts import ArchiveParts, InlineWorkers
from tests.support.samples import breast, mammogram, write

CATALOGUE = Catalogue(parse({"reconstruct": {"upscaler": "bicubic"}}, "test").reconstruct)
POINT = OperatingPoint(2, "jpegls")


class Crashing(InlineWorkers):
    """Decoders that crash on whatever they are asked."""

    def submit(self, request: object, priority: object) -> Future[str]:
        done: Future[str] = Future()
        done.set_exception(WorkerDied("killed by signal 11"))
        return done

    def alone(self, request: object) -> str:
        raise WorkerDied("killed by signal 11")


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


def pair_of(ds: Dataset, received: bytes, derived_uid: str, *, passed: bool = True) -> Pair:
    """A black base of an image of that size, and a bicubic reconstruction with the digests of its true pixels."""
    header = HeaderBytes(str(ExplicitVRLittleEndian), encode(ds[:0x7FE00010], ExplicitVRLittleEndian), b"")
    coded = coders.encode(np.zeros((32, 24), np.uint16), POINT)
    digest = hashlib.sha256(received).hexdigest()
    base = Base(POINT, 64, 48, 12, 0, 4095, None, 0.0, 1.0, 0.0, digest, "0" * 64, "OW", header, coded)
    verdict = Verdict(40.0, 0.99, 0.98, 1, gated=passed)
    upscaler = CATALOGUE.configured()
    made = Rendition(
        *(hashlib.sha256(encode_base(base)).hexdigest(), str(ds.SOPInstanceUID), derived_uid),
        *("bicubic", "LPACS_BICUBIC", False, upscaler.weights_digest, {}, 1, 1, "0" * 64, "0" * 64, verdict),
        extra={"minimum": [0, 0], "maximum": [4095, 4095]},
    )
    drawn, plain = (rendered(base, made, CATALOGUE, draw=draw).digest for draw in (True, False))
    return Pair(base, replace(made, output_digest=drawn, structure_digest=plain))


def hold_image(bench: ArchiveParts, ds: Dataset, derived_uid: str) -> bytes:
    """Receive an image of 64 x 48 pixels and give it a rendition; what was received."""
    received = write(ds, bench.root / "received.dcm").read_bytes()
    receive(bench, received, ds)
    claim = bench.index.claim("test", 60)
    assert claim is not None
    pair = pair_of(ds, received, derived_uid)
    bench.hot.put(pair.base_bytes)
    data = pair.rendition_bytes
    row = new_rendition(pair.rendition, POINT, len(pair.base_bytes), bench.hot.put(data), len(data))
    assert bench.index.finish_with(claim, InstanceState.VERIFIED, row)
    return received


def receive(bench: ArchiveParts, data: bytes, ds: Dataset, decoders: Any = None) -> Receipt:
    """Let a file arrive from a peer, announced with the UIDs of ``ds``."""
    path = bench.hot.spool / "arriving.dcm"
    path.write_bytes(data)
    ingest = Ingest(bench.index, bench.hot, bench.originals, decoders or InlineWorkers(), lambda _: None)
    uids = {"sop_class": str(ds.SOPClassUID), "sop_instance": str(ds.SOPInstanceUID)}
    return ingest.receive(path, **uids, calling_aet="MODALITY")


def derived_object(bench: ArchiveParts, made: StoredRendition, target: Path) -> Path:
    """The object that a peer gets for a rendition."""
    parts = DerivedParts(
        bench.hot.held(made.base_digest), bench.hot.held(made.rendition_digest), made.payload_bytes, made.verified_at
    )

    def ask(request: Any) -> str:
        assert isinstance(request, ReconstructRequest)
        reconstruct_to_files(request, CATALOGUE)
        return ""

    make_object(parts, target, ask)
    return target


def just_before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, do: Callable[[], Any], *, times: int = 1
) -> None:
    """Let another thread's ``do`` come in right before the next calls of a method, which then goes its usual way."""
    method, left = getattr(owner, name), [times]

    def beaten(*args: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            do()
        return method(*args, **named)

    monkeypatch.setattr(owner, name, beaten)
