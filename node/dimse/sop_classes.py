"""The SOP classes and transfer syntaxes that are offered (PS3.4 A.4, C.6, J.3, PS3.6 Annex A)."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.uid import (
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import register_uid, uid_to_service_class

from node.archive.query.identifier import Root
from node.config import WireSyntax
from storage.dicom.encapsulate import DEFLATED_FRAMES, JPEG_XL, JPEG_XL_LOSSLESS

VERIFICATION = "1.2.840.10008.1.1"

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance (PS3.4 J.3.5)."""

FIND, MOVE, GET = 1, 2, 3
_BRANCHES = {
    Root.PATIENT: "1.2.840.10008.5.1.4.1.2.1",
    Root.STUDY: "1.2.840.10008.5.1.4.1.2.2",
    Root.PATIENT_STUDY: "1.2.840.10008.5.1.4.1.2.3",  # retired
}


def query_retrieve(root: Root, service: int) -> str:
    """The SOP class UID of FIND, MOVE or GET in an information model."""
    return f"{_BRANCHES[root]}.{service}"


ROOTS = {query_retrieve(root, service): root for root in _BRANCHES for service in (FIND, MOVE, GET)}
"""SOP class UID to information model; the keys are what the server offers."""

RETIRED_CLASSES = (
    *(f"1.2.840.10008.5.1.1.{part}" for part in (27, 29, 30)),
    *(f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("3", "5", "6", "8", "9", "9.1", "10", "11", "12.3", "129")),
    *(f"1.2.840.10008.5.1.4.1.1.{part}" for part in ("77.1", "77.2", "88.1", "88.2", "88.3", "88.4")),
    "1.2.840.10008.5.1.4.34.1",
)
"""Storage classes that PS3.6 has retired and pynetdicom lacks: old archives hold many objects of Ultrasound Image."""
STORAGE_CLASSES = (*(str(context.abstract_syntax) for context in AllStoragePresentationContexts), *RETIRED_CLASSES)

_NOT_DECODED = (
    "1.2.840.10008.1.2.1.98",
    *(f"1.2.840.10008.1.2.4.{part}" for part in (*range(52, 57), *range(58, 67), 94, 95)),
    DEFLATED_FRAMES,
)
"""Encapsulated uncompressed pixels, retired processes of JPEG, JPIP, and deflated frames, for which pydicom has no
decoder."""
_ALL = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, *AllTransferSyntaxes, *_NOT_DECODED, *JPEG_XL)
TRANSFER_SYNTAXES = tuple(dict.fromkeys(map(str, _ALL)))
"""Transfer syntaxes that are accepted and stored unchanged: all of PS3.6 for data sets; preferred ones first.
Explicit VR little endian leads, since it loses nothing and every peer can encode it."""

VIDEO_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.77.1.{part}" for part in ("1.1", "2.1", "4.1"))
"""Video Endoscopic, Microscopic and Photographic Image Storage."""
VIDEO_SYNTAXES = tuple(sorted(TRANSFER_SYNTAXES, key=lambda uid: not uid.startswith("1.2.840.10008.1.2.4.10")))
"""Transfer syntaxes for these, MPEG and HEVC first: in a context of theirs, no video can be sent in little endian."""

MESSAGE_SYNTAXES = [
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian),
    *(DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian),
]
"""Transfer syntaxes of the identifiers of queries, retrievals and commitments; preferred ones first."""

WIRE_SYNTAXES: dict[WireSyntax, str] = {
    "htj2k": str(HTJ2KLossless),
    "jpegls": str(JPEGLSLossless),
    "jpeg2000": str(JPEG2000Lossless),
    "jpegxl": JPEG_XL_LOSSLESS,
    "rle": str(RLELossless),
    "explicit": str(ExplicitVRLittleEndian),
    "implicit": str(ImplicitVRLittleEndian),
}
"""Names in ``peers.transfer_syntaxes``, except ``original``."""

_LOSSLESS = {
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    *(f"1.2.840.10008.1.2.4.{part}" for part in (57, 70, 92, 202)),
    *WIRE_SYNTAXES.values(),
}


def register_storage_classes(uids: Iterable[str] = ()) -> None:
    """Let pynetdicom serve C-STORE for retired SOP classes and these; it aborts the association for an unknown one."""
    for uid in (*RETIRED_CLASSES, *uids):
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, f"Configured_{uid.replace('.', '_')}", StorageServiceClass)


def in_order(names: tuple[WireSyntax, ...], original: str) -> list[str]:
    """Transfer syntaxes in which to send an object held in ``original``, best first, for a peer's ``names``.

    The original encoding and little endian come last if they are not named, so that there is always one to try. A lossy
    original comes first, since lossless encoding would only make it larger.
    """
    named = [original if name == "original" else WIRE_SYNTAXES[name] for name in names]
    first = [] if original in _LOSSLESS else [original]
    return list(dict.fromkeys([*first, *named, original, WIRE_SYNTAXES["explicit"], WIRE_SYNTAXES["implicit"]]))
