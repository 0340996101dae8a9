"""Let a command whose UID is too long be answered with a status (PS3.7 9.3.1.1, 10.3.5.1).

pynetdicom 3.0: setting a SOP class or instance UID of a command raises for more than 64 characters.
The association is aborted, so the peer learns no reason, and cannot send its next images.
Upstream: not reported.
Remove when such a UID reaches the handler.
"""

from __future__ import annotations

from pydicom import Dataset

_LONGEST = 64
"""Characters of a UID (PS3.5 9.1)."""
_KEYWORDS = ("AffectedSOPClassUID", "RequestedSOPClassUID", "AffectedSOPInstanceUID", "RequestedSOPInstanceUID")


def shorten_uids(command: Dataset) -> None:
    """Cut a UID that is too long, and end it with a question mark, so that it stays invalid."""
    for keyword in _KEYWORDS:
        uid = str(command.get(keyword) or "")
        if len(uid) > _LONGEST:
            setattr(command, keyword, uid[: _LONGEST - 1] + "?")
