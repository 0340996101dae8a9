"""A model as it is installed where the workers run: what identifies it, and the files it consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.upscalers.protocol import Upscaler


@dataclass(frozen=True)
class Installed:
    """``recipe``: how new renditions are made with it. ``files``: name and place of each file; empty where it has none
    of its own, or they are not ours to keep."""

    upscaler: str
    weights_digest: str
    recipe: str
    files: tuple[tuple[str, Path], ...]


def installed(upscaler: Upscaler) -> Installed:
    """What stands behind an upscaler. Raises ModelMissing where its files cannot be read."""
    return Installed(upscaler.name, upscaler.weights_digest, f"steps {upscaler.steps}", upscaler.files)
