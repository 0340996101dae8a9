"""Strip the padding of AE titles in command sets (PS3.7 9.3.1, 9.3.4).

pynetdicom 3.0: ``C_MOVE.MoveDestination`` raises for a title that is padded with NUL, and the association is aborted.
Upstream: pynetdicom#921.
Remove when NUL padding is stripped and an invalid title is answered with a status.
"""

from __future__ import annotations

from pydicom import Dataset

from node.dimse.pynetdicom_patches.association_request import ae_title


def strip_ae_titles(command: Dataset) -> None:
    """Strip the padding; replace an invalid move destination by "?", which is no peer, and an originator by None.

    A move destination of padding alone is missing.
    """
    for keyword, otherwise in (("MoveDestination", "?"), ("MoveOriginatorApplicationEntityTitle", None)):
        if keyword in command:
            raw = str(command[keyword].value or "").encode("utf-8", "replace")
            title = ae_title(raw).decode("ascii")
            setattr(command, keyword, title or (otherwise if raw.strip(b" \0") else None))
