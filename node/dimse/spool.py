"""The file of an arriving data set, which never grows beyond what its sender may store.

The rest of a refused data set is discarded as it arrives: the response has the right status, and no space is used.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from storage.errors import InstanceTooLarge, LatentPacsError, StoreFull

_CHECK_EVERY = 16 * 2**20
"""Bytes between two checks of the free space."""
_META = 4096
"""Bytes allowed for preamble and file meta information, which are ours and not the sender's."""


@dataclass(frozen=True)
class Allowance:
    """Limits for one association: bytes per instance, and a check of the free space that raises StoreFull."""

    most: int
    check_room: Callable[[], None]


class SpoolFile:
    """Stands in for pynetdicom's ``NamedTemporaryFile``.

    ``refused``: the error, after which nothing more is written; None if there was none.
    ``began``: the monotonic time (s) at which the data set began to arrive. Errors are stored, never raised.
    """

    def __init__(self, folder: Path, allowance: Allowance) -> None:
        self.began = time.monotonic()
        self._allowance = allowance
        self._size = self._checked = 0
        self.refused: LatentPacsError | None = None
        self._out: IO[bytes] = BytesIO()
        self.name = str(folder / f"refused-{uuid.uuid4().hex}.dcm")  # no such file: the name if none can be created
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, self.name = tempfile.mkstemp(dir=folder, suffix=".dcm")
            self._out = os.fdopen(handle, "wb")
        except OSError as error:
            self.refused = _no_room(error)

    @property
    def file(self) -> SpoolFile:
        """Itself; pynetdicom flushes ``file`` after each fragment."""
        return self

    def write(self, data: bytes) -> int:
        if self.refused is None:
            self._size += len(data)
            try:
                self._check()
                self._out.write(data)
            except LatentPacsError as error:
                self._refuse(error)
            except OSError as error:
                self._refuse(_no_room(error))
        return len(data)

    def flush(self) -> None:
        if self.refused is None:
            try:
                self._out.flush()
            except OSError as error:
                self._refuse(_no_room(error))

    def close(self) -> None:
        try:
            self._out.close()
        except OSError as error:
            self.refused = self.refused or _no_room(error)

    def __del__(self) -> None:
        self.close()  # an association that ends while it decodes a message does not close it

    def _check(self) -> None:
        if self._size > self._allowance.most + _META:
            raise InstanceTooLarge(f"larger than the {self._allowance.most} bytes that are accepted here")
        if self._size - self._checked >= _CHECK_EVERY:
            self._checked = self._size
            self._allowance.check_room()

    def _refuse(self, error: LatentPacsError) -> None:
        self.refused = error
        with suppress(OSError):  # there may be no space for the buffer either
            self._out.close()
        with suppress(OSError):
            os.truncate(self.name, 0)


def _no_room(error: OSError) -> StoreFull:
    """One error for a disk that is full, read-only or missing (status A700): the sender may try again later."""
    refused = StoreFull(f"an arriving instance cannot be written: {error.strerror}")
    refused.__cause__ = error
    return refused
