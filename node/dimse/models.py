"""The service classes offered beside storage, by SOP class UID (PS3.4 A.4, C.6, J.3, PS3.6 Annex A)."""

from __future__ import annotations

from node.archive.identifier import Root

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
