"""Verifies that an object which this archive made can be sent and read, by reading back its encodings.

An object is made in explicit VR little endian. It is sent in that or in implicit VR little endian, which every peer
accepts (PS3.5 10.1). Both are verified, since each fails on headers that are valid in the other.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.dicom.dicomfile import opened
from storage.dicom.element_walk import check_order
from storage.dicom.pixels import transcode
from storage.errors import Unparseable


def fault_of_object(path: Path, pixel_digest: str, sop_instance_uid: str) -> str:
    """The fault of a Part 10 file in explicit VR little endian; empty if it has none.

    ``pixel_digest``: SHA-256, hex, of the value of Pixel Data. The result contains no values of the header. Raises
    OSError if there is no room for the other encoding beside the file.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        implicit = Path(folder) / "implicit"
        try:
            tags = _read(path, ExplicitVRLittleEndian, pixel_digest, sop_instance_uid)
            transcode(path, implicit, ImplicitVRLittleEndian)
            if _read(implicit, ImplicitVRLittleEndian, pixel_digest, sop_instance_uid) != tags:
                return "it has other elements in implicit VR little endian than in explicit VR"
        except _Fault as fault:
            return str(fault)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - pydicom raises many kinds on invalid values
            return f"it cannot be encoded in implicit VR little endian: {type(error.__cause__ or error).__name__}"
    return ""


class _Fault(Exception):
    """The object has a fault; the message is for people."""


def _read(path: Path, syntax: UID, pixel_digest: str, sop_instance_uid: str) -> list[int]:
    """Read every element. Returns the tags of the top level. Raises _Fault."""
    where = f"in {syntax.name.lower().replace('vr', 'VR')}"
    try:
        with opened(path) as file:
            if file.transfer_syntax != syntax or file.layout.truncated or file.layout.encapsulated:
                raise _Fault(f"{where} it is not a complete file of that transfer syntax")
            check_order(file.data, syntax)
            if hashlib.sha256(file.native_value()).hexdigest() != pixel_digest:
                raise _Fault(f"{where} its pixels are not those that were verified")
            header = file.header()
    except Unparseable as error:
        reason = type(error.__cause__).__name__ if error.__cause__ else str(error)  # pydicom's messages quote values
        raise _Fault(f"{where} it cannot be read: {reason}") from error
    _read_all(header, where)
    if str(header.get("SOPInstanceUID")) != sop_instance_uid:
        raise _Fault(f"{where} it does not have the SOP Instance UID {sop_instance_uid}")
    return sorted(int(tag) for tag in header.keys())  # noqa: SIM118 - iterating gives elements


def _read_all(dataset: Dataset, where: str) -> None:
    for tag in sorted(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception as error:
            shown = f"({tag.group:04X},{tag.element:04X})"
            raise _Fault(f"{where} {shown} cannot be read: {type(error).__name__}") from error
        if element.VR == "SQ":
            for item in element.value or ():
                _read_all(item, where)
