"""A model installed on the machine of the workers: its identity and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.upscalers.protocol import Upscaler


@dataclass(frozen=True)
class Installed:
    """``recipe``: parameters for new renditions. ``files``: name and path of each file that the archive keeps."""

    upscaler: str
    weights_digest: str
    recipe: str
    files: tuple[tuple[str, Path], ...]


def installed(upscaler: Upscaler) -> Installed:
    """The installed model of an upscaler. Raises ModelMissing if its files cannot be read."""
    return Installed(upscaler.name, upscaler.weights_digest, f"steps {upscaler.steps}", upscaler.files)
