"""Proves which object a rendition that is made again names as measured, and with which tiles it is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from node.codec.fingerprint import fingerprint_of
from node.codec.rendering import Rendering
from node.upscalers import catalogue
from node.upscalers.catalogue import Catalogue
from node.upscalers.mammo import Mammo
from node.workers.rendering_again import RenderAgainRequest
from storage.errors import ConfigError
from storage.formats.payload import Rendition, encode_rendition
from tests.support.coded_images import CATALOGUE, Pair, pair_of, small


@pytest.fixture
def pair() -> Pair:
    made = pair_of(small("1.2.3"), b"received", "2.25.7")
    served = Rendering.of(made.base, made.rendition, CATALOGUE).pixels(draw=True)
    return replace(made, rendition=replace(made.rendition, fingerprint=fingerprint_of(served), output_digest="0" * 64))


def again(pair: Pair, former: Rendition, folder: Path) -> Rendition:
    base, rendition = folder / "base", folder / "rendition"
    base.write_bytes(pair.base_bytes)
    rendition.write_bytes(encode_rendition(former))
    made = RenderAgainRequest(base, rendition).answer(CATALOGUE).made
    assert made is not None
    return made.rendition


def test_the_measured_object_is_named_unless_it_is_this_one(pair: Pair, tmp_path: Path) -> None:
    made = again(pair, pair.rendition, tmp_path)
    assert made.measured_uid == "2.25.7"
    third = again(pair, replace(made, derived_uid="2.25.8", output_digest="1" * 64), tmp_path)
    assert third == made, "over another machine too"
    back = again(pair, replace(made, output_digest="1" * 64, measured_uid=made.derived_uid), tmp_path)
    assert (back.derived_uid, back.measured_uid) == (made.derived_uid, "")


def test_a_machine_without_the_device_keeps_the_tiles(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tiles have other seams, which are more than rounding."""
    models = Catalogue(CATALOGUE._settings.model_copy(update={"device": "cpu"}))

    def none(name: str) -> None:
        raise ConfigError(f"no {name}")

    monkeypatch.setattr(catalogue, "device_of", none)
    weights = models.by_digest("mammo", Mammo(Path(models._sources("mammo")[0])).weights_digest).weights_digest
    numerics = {"device": "cuda", "dtype": "float16", "tile": "320"}
    former = replace(pair.rendition, upscaler="mammo", weights_digest=weights, numerics=numerics)
    found = models.for_rendition_here(former).numerics
    assert (found["device"], found["tile"]) == ("cpu", "320")
