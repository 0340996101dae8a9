"""Makes the pixels of a rendition again, where another machine or library may give other pixels than those verified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from node.codec.decode import SideInformation
from node.codec.encode.encode_request import EncodedRendition
from node.codec.fingerprint import difference
from node.codec.rendering import Rendering, extremes, read_pair
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Installed
from storage.dicom.pixels import pixel_digest
from storage.formats.payload import encode_rendition, numerics_digest, with_derived_uid


@dataclass(frozen=True)
class NumericsRequest:
    """The digests of the numerics with which this machine would verify new renditions."""

    def answer(self, catalogue: Catalogue) -> tuple[str, ...]:
        return tuple(numerics_digest(one.numerics) for one in catalogue.candidates())


@dataclass(frozen=True)
class RenderedAgain:
    """``same``: both objects have exactly the verified pixels. ``difference``: why the new pixels differ by more than
    rounding; empty if they do not. ``made``: the rendition with the new pixels, if they differ by rounding only."""

    same: bool
    difference: str = ""
    made: EncodedRendition | None = None


@dataclass(frozen=True)
class RenderAgainRequest:
    """Make the pixels of a rendition by its own model. ``model``: as in ReconstructRequest."""

    base: Path
    rendition: Path
    model: Path | None = None

    def answer(self, catalogue: Catalogue) -> RenderedAgain:
        """Raises ModelMissing or PayloadError if the rendition cannot be decoded."""
        base, former = read_pair(self.base, self.rendition)
        upscaler = catalogue.for_rendition_here(former, self.model)
        side = SideInformation.of(former)
        rendering = Rendering(base, upscaler, side, seed=former.seed, steps=former.steps)
        served, plain = rendering.pixels(draw=True), rendering.pixels(draw=False)
        digests = pixel_digest(served), pixel_digest(plain)
        if digests == (former.output_digest, former.structure_digest):
            return RenderedAgain(same=True)
        if other := difference(former.fingerprint, served, plain):
            return RenderedAgain(same=False, difference=other)
        made = with_derived_uid(
            replace(
                former,
                numerics=rendering.numerics,
                output_digest=digests[0],
                structure_digest=digests[1],
                measured_uid="",
                extra=extremes(base, served, plain),
            )
        )
        if made.derived_uid != (measured := former.measured_uid or former.derived_uid):
            made = replace(made, measured_uid=measured)
        model = replace(Installed.of(upscaler), recipe=f"steps {made.steps}")
        data = self.base.read_bytes(), encode_rendition(made)
        return RenderedAgain(same=False, made=EncodedRendition(made, base.point, *data, model))
