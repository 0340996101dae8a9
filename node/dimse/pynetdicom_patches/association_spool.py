"""Spool arriving data sets into a folder for each association, on the store's file system, with a size limit.

pynetdicom 3.0: ``DIMSEMessage.decode_msg`` with STORE_RECV_CHUNKED_DATASET writes to the system's temporary folder
without a limit, and leaves the file there when the peer ends in the middle. The switch holds for every AE of the
process.
Upstream: pynetdicom#526 added the switch; its review raised the file left behind.
Remove when folder, limit and cleanup are settings of an AE.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pynetdicom import _config, dimse_messages

from node.dimse.pynetdicom_patches.decoder import receiving_association
from node.dimse.spool import SpoolFile


def install() -> None:
    """Replace the settings and the temporary file of pynetdicom's decoder for our associations."""
    decoder: Any = dimse_messages
    decoder.NamedTemporaryFile = _spool_file
    decoder._config = _SpoolingConfig()


def association_spool(assoc: Any) -> Path:
    """The folder of an association's arriving data sets."""
    return Path(assoc.ae.spool) / f"association-{id(assoc)}"


def is_receiving(assoc: Any) -> bool:
    """True while a data set of that association is arriving, or its handler works on one."""
    try:
        with os.scandir(association_spool(assoc)) as entries:
            return any(True for _ in entries)
    except FileNotFoundError:
        return False


def remove_association_spool(assoc: Any) -> None:
    """Remove the folder, with a data set that has not arrived completely."""
    partial = getattr(getattr(assoc.dimse, "message", None), "_data_set_file", None)
    if partial is not None:
        partial.close()
    shutil.rmtree(association_spool(assoc), ignore_errors=True)


class _SpoolingConfig:
    """pynetdicom's settings as its message decoder sees them: spooling is on for our associations only."""

    def __getattr__(self, name: str) -> Any:
        if name == "STORE_RECV_CHUNKED_DATASET":
            return _spooled_association() is not None
        return getattr(_config, name)


def _spooled_association() -> Any:
    """The association whose message this thread decodes, if its data sets are spooled; else None."""
    assoc = receiving_association()
    return assoc if assoc is not None and assoc.is_acceptor else None


def _spool_file(**options: Any) -> Any:
    assoc = _spooled_association()
    if assoc is None:
        return tempfile.NamedTemporaryFile(**options)
    return SpoolFile(association_spool(assoc), assoc.ae.allowance(assoc))
