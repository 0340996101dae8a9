"""``latent-pacs retry``: puts images that could not be encoded back to work."""

from __future__ import annotations

from typing import Annotated

import typer

from node.cli.exit_codes import UsageError
from node.cli.options import DEFAULT_CONFIG, REASON_CODES, ConfigOption, JsonOption, open_index, say
from storage.printable import counted
from storage.records import ReasonCode


def _code(text: str) -> ReasonCode:
    """The reason code that a person named. Raises UsageError."""
    if text not in REASON_CODES:
        raise UsageError(f"--reason: there is no reason code {text!r}; name one of {', '.join(REASON_CODES)}")
    return ReasonCode(text)


def retry(
    reason: Annotated[
        ReasonCode | None,
        typer.Option(
            "--reason",
            help="Encode the exact images with this reason code instead, such as sop-class, large or gate.",
            metavar="CODE",
            parser=_code,
        ),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Encode images again that failed too often (state failed), or whose rendition an audit withdrew.

    With --reason, images in state exact are tried again, as after a change of the configuration. Those that the rules
    still exclude become exact again.
    """
    with open_index(config) as index:
        count = index.retry_failed() if reason is None else index.retry_exact(reason)
    say({"retried": count}, f"{counted(count, 'image')} put back into the backlog", as_json=as_json)
