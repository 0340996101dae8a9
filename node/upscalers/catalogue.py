"""Builds upscalers by name. No other module maps ``reconstruct.upscaler`` of config.yaml to a class."""

from __future__ import annotations

from pathlib import Path

from node.config import ReconstructSettings
from node.upscalers.numerics import device_of
from node.upscalers.protocol import Upscaler
from storage.errors import ConfigError, ModelMissing
from storage.formats.payload import Rendition


class Catalogue:
    """Upscalers by name. Each combination of weights and numerics is built once, so it is loaded once per process."""

    def __init__(self, settings: ReconstructSettings) -> None:
        self._settings = settings
        self._built: dict[tuple[str, ...], Upscaler] = {}

    def configured(self) -> Upscaler:
        """The upscaler for new renditions."""
        name = self._settings.upscaler
        return self._get(name, {}, self._sources(name)[0])

    def candidates(self) -> tuple[Upscaler, ...]:
        """The upscalers that the encoder compares for a new rendition: the configured one; with mammo, also bicubic."""
        first = self.configured()
        return (first, self._get("bicubic", {}, "")) if first.name == "mammo" else (first,)

    def for_rendition(self, rendition: Rendition, kept: Path | None = None) -> Upscaler:
        """The upscaler of a rendition, with the numerics that the rendition was verified with.

        ``kept``: folder with the archive's copy of the model, or None. Raises ModelMissing if weights with this digest
        are neither installed nor in ``kept``.
        """
        return self._find(rendition.upscaler, rendition.weights_digest, rendition.numerics, kept)

    def for_rendition_here(self, rendition: Rendition, kept: Path | None = None) -> Upscaler:
        """As ``for_rendition``, but on this machine's own device, with the same tiles, if it lacks the rendition's."""
        numerics = rendition.numerics
        try:
            device_of(numerics.get("device", "cpu"))
        except ConfigError:
            numerics = {name: value for name, value in numerics.items() if name not in ("device", "dtype")}
        return self._find(rendition.upscaler, rendition.weights_digest, numerics, kept)

    def by_digest(self, upscaler: str, weights_digest: str) -> Upscaler:
        """The installed upscaler whose weights have this digest. Raises ModelMissing."""
        return self._find(upscaler, weights_digest, {}, None)

    def _find(self, name: str, weights_digest: str, numerics: dict[str, str], kept: Path | None) -> Upscaler:
        installed, broken = [], []
        for source in [*self._sources(name), *([str(kept)] if kept else [])]:
            try:
                upscaler = self._get(name, numerics, source)
                if upscaler.weights_digest == weights_digest:
                    return upscaler
                installed.append(upscaler.weights_digest)
            except ModelMissing as error:
                broken.append(str(error))
        raise ModelMissing(
            f"{name} weights {weights_digest} are not installed "
            f"(installed: {', '.join(installed + broken)}); restore them, or serve the original"
        )

    def _sources(self, name: str) -> list[str]:
        """Sources of an upscaler's weights, folders or a model id; the one for new renditions is first."""
        if name == "mammo":
            from node.upscalers.mammo import SHIPPED

            own = self._settings.mammo
            return list(dict.fromkeys([own.weights or str(SHIPPED), *own.older, str(SHIPPED)]))
        return [self._settings.sd_x2.weights if name == "sd_x2" else ""]

    def _get(self, name: str, numerics: dict[str, str], source: str) -> Upscaler:
        key = (name, source, *(numerics.get(part, "") for part in ("device", "dtype", "tile", "overlap")))
        if key not in self._built:
            self._built[key] = self._build(name, numerics, source)
        return self._built[key]

    def _build(self, name: str, numerics: dict[str, str], source: str) -> Upscaler:
        device = numerics.get("device", self._settings.device)
        if name == "mammo":
            from node.upscalers.mammo import Mammo

            return Mammo(
                Path(source),
                device=device,
                steps=self._settings.mammo.steps,
                tile=int(numerics.get("tile", self._settings.mammo.tile)),
                dtype=numerics.get("dtype", "auto"),
            )
        if name == "bicubic":
            from node.upscalers.bicubic import Bicubic

            return Bicubic()
        if name == "sd_x2":
            from node.upscalers.sd_x2 import SdX2

            own = self._settings.sd_x2
            return SdX2(
                source,
                device=device,
                dtype=numerics.get("dtype", own.dtype),
                steps=own.steps,
                tile=int(numerics.get("tile", own.tile)),
                overlap=int(numerics.get("overlap", own.overlap)),
            )
        raise ModelMissing(f"no upscaler is named {name!r} in this release")
