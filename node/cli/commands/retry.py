"""``latent-pacs retry``: puts images that could not be encoded back to work."""

from __future__ import annotations

from node.cli.console import Console
from node.cli.options import DEFAULT_CONFIG, ConfigOption, JsonOption, open_index, print_json


def retry(config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Encode images again that failed too often (state failed), or whose rendition an audit withdrew."""
    with open_index(config) as index:
        count = index.retry_failed()
    print_json({"retried": count}) if as_json else Console().print(f"{count} instances are back in the backlog")
