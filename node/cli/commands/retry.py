"""``latent-pacs retry``: puts images that could not be encoded back to work."""

from __future__ import annotations

from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, open_index, say
from storage.printable import counted


def retry(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Encode images again that failed too often (state failed), or whose rendition an audit withdrew."""
    with open_index(config) as index:
        count = index.retry_failed()
    say({"retried": count}, f"{counted(count, 'image')} put back into the backlog", as_json=as_json)
