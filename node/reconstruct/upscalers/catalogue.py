"""Which upscaler a name means. The only place that maps config.yaml's ``reconstruct.upscaler`` to a class."""

from __future__ import annotations

from node.config import ReconstructSettings
from node.reconstruct.upscalers.protocol import Upscaler
from storage.errors import ModelMissing
from storage.payload import Rendition


class Catalogue:
    """Upscalers by name, built once and kept, so that weights are loaded once per process."""

    def __init__(self, settings: ReconstructSettings) -> None:
        self._settings = settings
        self._built: dict[tuple[str, ...], Upscaler] = {}

    def configured(self) -> Upscaler:
        """The upscaler for new renditions."""
        return self._get(self._settings.upscaler, {})

    def for_rendition(self, rendition: Rendition) -> Upscaler:
        """The upscaler that made a rendition, with the numerics it was verified with.

        Raises ModelMissing where these very weights are not installed any more.
        """
        upscaler = self._get(rendition.upscaler, rendition.numerics)
        if upscaler.weights_digest != rendition.weights_digest:
            raise ModelMissing(
                f"{rendition.upscaler} weights {rendition.weights_digest} are not installed "
                f"(installed: {upscaler.weights_digest}); restore them, or serve the original"
            )
        return upscaler

    def _get(self, name: str, numerics: dict[str, str]) -> Upscaler:
        key = (name, *(numerics.get(part, "") for part in ("device", "dtype", "tile", "overlap")))
        if key not in self._built:
            self._built[key] = self._build(name, numerics)
        return self._built[key]

    def _build(self, name: str, numerics: dict[str, str]) -> Upscaler:
        if name == "bicubic":
            from node.reconstruct.upscalers.bicubic import Bicubic

            return Bicubic()
        if name == "sd_x2":
            from node.reconstruct.upscalers.sd_x2 import SdX2

            own = self._settings.sd_x2
            return SdX2(
                own.weights,
                device=numerics.get("device", self._settings.device),
                dtype=numerics.get("dtype", own.dtype),
                steps=own.steps,
                tile=int(numerics.get("tile", own.tile)),
                overlap=int(numerics.get("overlap", own.overlap)),
            )
        raise ModelMissing(f"no upscaler is named {name!r} in this release")
