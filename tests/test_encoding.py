"""Down the ladder (node/codec/encoding.py): what is asked of the network, and what is kept of its answer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node.codec import guiding
from node.codec.encoding import EncodeRequest, EncodeResult, encode_and_verify
from node.codec.engine import reconstruct
from node.codec.forecast import Gain, Sample
from node.codec.guide import NETWORK, decode_guide
from node.codec.patches import decode_patches
from node.codec.points import decode_points
from node.config import ReconstructSettings
from node.upscalers.catalogue import Catalogue
from node.upscalers.mammo import Mammo
from node.upscalers.protocol import Upscaled, UpscaleTask
from storage.payload import decode_base, decode_rendition
from storage.pixels import pixel_digest
from storage.records import Rung, Thresholds
from tests.samples import breast, mammogram, write

CHEAP = Rung(4, "jpegxl", distance=6.0, sample_bits=12)
GOOD = Rung(2, "png16")
LOSSY = Rung(2, "jpegxl", distance=0.3, sample_bits=12)


FLOOR = Thresholds(0.93, 0.90, 28.42)


def encode(
    folder: Path,
    *ladder: Rung,
    detail: float = 0.0,
    thresholds: Thresholds | None = FLOOR,
    share: float = 0.5,
    regions: tuple[tuple[int, int, int, int], ...] = (),
    size: tuple[int, int] = (420, 380),
) -> EncodeResult:
    ds = mammogram(breast(*size))
    path = write(ds, folder / "one.dcm")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    request = EncodeRequest(path, digest, str(ds.SOPInstanceUID), ladder, thresholds, share, regions)
    settings = ReconstructSettings.model_validate({"upscaler": "mammo", "device": "cpu", "detail": detail})
    return encode_and_verify(request, Catalogue(settings))


def retrieved(result: EncodeResult) -> str:
    """Digest of the pixels that a retrieval would make of the payload's bytes."""
    base, made = decode_base(result.base), decode_rendition(result.rendition)
    return pixel_digest(
        reconstruct(
            base,
            Mammo(device="cpu"),
            seed=made.seed,
            steps=made.steps,
            guide=decode_guide(made.guide),
            points=decode_points(made.points) if made.points else None,
            patches=decode_patches(made.patches) if made.patches else None,
        )
    )


def test_the_network_is_not_asked_where_it_cannot_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Rung] = []
    upscale = Mammo.upscale

    def counted(self: Mammo, task: UpscaleTask) -> Upscaled:
        if task.levels is not None and task.levels.any():
            asked.append(task.rung)
        return upscale(self, task)

    monkeypatch.setattr(Mammo, "upscale", counted)
    result = encode(tmp_path, CHEAP, GOOD)
    assert asked == [GOOD]
    assert [outcome.rung for outcome in result.tried] == [str(CHEAP), str(GOOD)]
    first = result.tried[0].verdict
    assert first.fsim_mean < 0.91
    assert first.failures
    assert result.made is not None
    assert result.made.verdict.passed
    assert retrieved(result) == result.made.output_digest


def test_texture_may_help_anywhere_so_it_is_always_asked(tmp_path: Path) -> None:
    result = encode(tmp_path, CHEAP, detail=1.0)
    plain = encode(tmp_path, CHEAP)
    assert result.tried[0].verdict.fsim_mean > plain.tried[0].verdict.fsim_mean


def test_the_base_is_kept_where_the_network_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that ruins everything: the base alone is served, its fine detail raised, and the header still warns."""

    monkeypatch.setattr(guiding, "_never_worse", lambda draft, truth, guide, unhelped: (guide, np.zeros_like(unhelped)))
    result = encode(tmp_path, LOSSY)
    assert result.made is not None
    assert result.made.verdict.passed
    monkeypatch.undo()
    assert retrieved(result) == result.made.output_digest
    guide = decode_guide(result.made.guide)
    assert guide.corrections[NETWORK].any() or not guide.levels.any()
    assert result.made.generative, "the header says so whatever the guide says"


@pytest.mark.slow
@pytest.mark.parametrize("helps", [True, False])
def test_a_sample_shows_whether_the_network_is_worth_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """An image of many tiles: twice four are asked first, and all of it only where they promise anything."""
    sizes: list[int] = []
    upscale = Mammo.upscale

    def counted(self: Mammo, task: UpscaleTask) -> Upscaled:
        sizes.append(task.operator.rows * task.operator.columns)
        return upscale(self, task)

    monkeypatch.setattr(Mammo, "upscale", counted)
    if not helps:
        gains = Sample.gains
        monkeypatch.setattr(
            Sample, "gains", lambda *of, **how: [Gain(gain.fsim - 0.1, gain.psnr_db) for gain in gains(*of, **how)]
        )
    result = encode(tmp_path, LOSSY, size=(2048, 1500))
    whole = 2048 * 1500
    assert sizes[0] < whole
    assert sizes == ([sizes[0], sizes[0], whole] if helps else [sizes[0]])
    assert result.made is not None
    assert decode_guide(result.made.guide).corrections[NETWORK].any() == helps


def test_points_and_patches_belong_to_the_rendition(tmp_path: Path) -> None:
    """Tile limits that the rung misses in places: what mends them is in the rendition, and decides its UID."""
    strict = replace(FLOOR, error_max=4.0, speck=4.0, speck_near=4.0, speck_kept=1.0)
    mended, plain = encode(tmp_path, LOSSY, thresholds=strict), encode(tmp_path, LOSSY)
    assert mended.made is not None
    assert plain.made is not None
    assert mended.made.points or mended.made.patches
    assert decode_base(mended.base).coded == decode_base(plain.base).coded
    assert retrieved(mended) == mended.made.output_digest
    assert mended.made.verdict.figures["error_max"] <= 4.0


def test_a_named_region_is_exact(tmp_path: Path) -> None:
    result = encode(tmp_path, LOSSY, regions=((100, 120, 30, 40),))
    assert result.made is not None
    assert result.made.patches
    cells = decode_patches(result.made.patches).cells
    assert cells[3:5, 3:5].all()
    assert retrieved(result) == result.made.output_digest


@pytest.mark.slow
def test_a_long_ladder_is_climbed_by_forecast(tmp_path: Path) -> None:
    """The smallest rung that passes, few attempts, and a word on why each other one was not taken."""
    ladder = tuple(Rung(2, "jpegxl", distance, sample_bits=12) for distance in (8.0, 4.0, 2.0, 1.0, 0.5, 0.2))
    found = encode(tmp_path, *ladder)
    alone = {rung.distance: encode(tmp_path, rung) for rung in ladder}
    smallest = max(distance for distance, result in alone.items() if result.made is not None)
    assert found.made is not None
    assert decode_base(found.base).rung.distance == smallest
    attempts = [outcome for outcome in found.tried if not outcome.forecast]
    assert len(attempts) <= 3
    assert all(outcome.verdict.failures for outcome in found.tried[:-1] if outcome.forecast)


@pytest.mark.slow
def test_without_a_gate_the_first_rung_is_the_networks(tmp_path: Path) -> None:
    result = encode(tmp_path, CHEAP, GOOD, thresholds=None)
    assert result.made is not None
    assert len(result.tried) == 1
    assert not result.made.verdict.passed
    assert decode_guide(result.made.guide).levels.any()
