"""Proves who unpacks an original: this process if it takes little, a worker otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from node.archive.originals.unpacking import Unpacker
from storage.dicom.packbits import encode_plane
from storage.errors import ObjectDamaged
from storage.formats.packed_original import pack_original
from tests.support.archive_parts import InlineWorkers
from tests.support.samples import breast, byte_planes, mammogram, rle_file, write


class CountedWorkers(InlineWorkers):
    def __init__(self) -> None:
        self.asked = 0

    def submit(self, request: object, priority: object) -> Future[str]:
        self.asked += 1
        return super().submit(request, priority)  # type: ignore[arg-type]


@pytest.fixture
def workers() -> CountedWorkers:
    return CountedWorkers()


@pytest.fixture
def unpacker(workers: CountedWorkers) -> Iterator[Unpacker]:
    made = Unpacker(workers, 1)  # type: ignore[arg-type]
    yield made
    made.close()


def received_file(folder: Path, *, rle: bool) -> Path:
    ds, pixels = mammogram(breast(300, 280)), breast(300, 280)
    if not rle:
        return write(ds, folder / "x.dcm")
    return rle_file(ds, folder / "x.dcm", [encode_plane(plane) for plane in byte_planes(pixels)])


@pytest.mark.parametrize("rle", [False, True], ids=["native", "rle"])
def test_only_pixels_in_rle_are_unpacked_by_a_worker(
    rle: bool, unpacker: Unpacker, workers: CountedWorkers, tmp_path: Path
) -> None:
    path = received_file(tmp_path, rle=rle)
    received = path.read_bytes()
    digest = hashlib.sha256(received).hexdigest()
    packed, target = tmp_path / "packed", tmp_path / "restored"
    packed.write_bytes(pack_original(path, "jpegls", digest))
    unpacker.restore(packed, digest, target)
    assert target.read_bytes() == received
    assert workers.asked == int(rle)


@pytest.mark.parametrize("rle", [False, True], ids=["here", "by a worker"])
def test_bytes_that_are_not_those_received_are_an_error(rle: bool, unpacker: Unpacker, tmp_path: Path) -> None:
    path = received_file(tmp_path, rle=rle)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    packed = tmp_path / "packed"
    packed.write_bytes(pack_original(path, "jpegls", digest))
    with pytest.raises(ObjectDamaged, match=f"packed unpacks to {digest}, not to {'0' * 64}"):
        unpacker.restore(packed, "0" * 64, tmp_path / "restored")
