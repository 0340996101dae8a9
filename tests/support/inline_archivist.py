"""An archivist without a network and without worker processes, which encodes in the calling thread and then stops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydicom import Dataset

from node.archive.encode.archivist import Archivist
from node.archive.intake.marked_regions import MarkedRegions
from node.config import parse
from storage.records import StoredInstance
from tests.support.archive_parts import ArchiveParts
from tests.support.coded_images import InlinePool, receive
from tests.support.samples import breast, mammogram, write

UID = "1.2.3.1"
SETTINGS = parse({"reconstruct": {"upscaler": "bicubic"}, "archivist": {"poll": 0.05, "attempts": 2}}, "test")


class InlineArchivist:
    """Encodes the backlog of ``bench`` with ``pool``."""

    def __init__(self, bench: ArchiveParts, pool: Any = None) -> None:
        self.bench = bench
        self.regions = MarkedRegions(bench.index, bench.hot, bench.originals, None)
        parts = bench.index, bench.hot, bench.originals, pool or InlinePool(), SETTINGS, self.regions
        self.archivist = Archivist(*parts, when_idle=self._idle)

    def run(self) -> StoredInstance | None:
        """Work until nothing is left to do. Returns the image with ``UID``."""
        self.archivist.run()
        self.bench.index.garbage.collect(self.bench.stores)
        return self.bench.index.by_uid(UID)

    def _idle(self) -> bool:
        if not self.archivist.busy:
            self.archivist.stop()
        return False


def arrive(bench: ArchiveParts, ds: Dataset | None = None) -> bytes:
    """Receive a data set, by default an image of the smallest size that is encoded. Returns the received bytes."""
    ds = mammogram(breast(256, 256), SOPInstanceUID=UID) if ds is None else ds
    data = write(ds, bench.root / "arriving.dcm").read_bytes()
    receive(bench, data, ds)
    return data


def once(kind: type, do: Callable[[], object]) -> Callable[[object], None]:
    """For ``InlinePool``: a function that calls ``do`` at the first request of a kind."""
    left = [1]

    def first(request: object) -> None:
        if isinstance(request, kind) and left:
            left.pop()
            do()

    return first
