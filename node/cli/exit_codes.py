"""The exit codes of all commands. ``latent-pacs --help`` prints them."""

from __future__ import annotations

from storage.errors import ConfigError, InputInvalid, LatentPacsError, Refused, UnknownReport, UnknownUid

DONE = 0
FAILED = 1
USAGE = 2
REFUSED = 3
UNFINISHED = 4
PIPE_CLOSED = 141
"""128 plus the number of SIGPIPE, as a shell reports for a program that this signal ended."""

MEANINGS = {
    DONE: "done",
    FAILED: "failed, or done with findings such as damage, which the output names",
    USAGE: "usage error: wrong options, arguments or configuration, or a name or UID that the archive does not have",
    REFUSED: "refused by a rule of the archive, such as a hold or a running node; nothing was changed",
    UNFINISHED: "ended before it was finished, by a cancellation or a signal; run it again",
    PIPE_CLOSED: "the reader of the output closed it, as `head` does; the command's changes remain in effect",
}


class UsageError(InputInvalid):
    """The options are incomplete, contradict each other, or name something that does not exist."""


def code_of(error: LatentPacsError) -> int:
    if isinstance(error, Refused):
        return REFUSED
    return USAGE if isinstance(error, (InputInvalid, ConfigError, UnknownUid, UnknownReport)) else FAILED
