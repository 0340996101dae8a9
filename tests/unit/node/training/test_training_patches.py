"""Proves how training patches are made: parts of mammograms, augmented and coded by the encoder, and crops of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import Dataset

from node.fidelity.breast_regions import breast_mask
from node.training import training_patches
from node.training.image_files import Picture
from node.training.training_patches import TrainingPatch, code, crops, degrade, make_patch
from node.upscalers.network import LATENT, SEEN, STRIDE, UNSHUFFLE, to_pixels
from tests.support.samples import breast

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]


def picture(rows: int = 320, columns: int = 256, *, seed: int = 0, bits: int = 12) -> Picture:
    pixels = breast(rows, columns, seed=seed, bits=bits)
    return Picture(str(seed), pixels, bits, Dataset(), False, breast_mask(pixels, "MONOCHROME2"))


def tissue(seed: int = 0) -> Float:
    """256 x 256 pixels of breast without air."""
    return breast(640, 512, seed=seed)[192:448, :256].astype(np.float32)


def patch_of(
    pixels: Float, scale: int = 2, distance: float = 0.6, *, inside: NDArray[np.bool_] | None = None
) -> TrainingPatch:
    where = np.ones(pixels.shape, dtype=bool) if inside is None else inside
    return degrade(pixels, where, scale, distance, np.random.default_rng(1))


def parts(patch: TrainingPatch) -> tuple[torch.Tensor, ...]:
    return patch.seen, patch.wanted, patch.share, patch.point, patch.noise


def same(one: TrainingPatch, other: TrainingPatch) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def test_a_patch_is_a_function_of_pictures_seed_and_number() -> None:
    pictures = [picture(seed=1), picture(seed=2)]
    whose = [(7, 3), (7, 4), (8, 3)]
    made = [make_patch(pictures, seed, number) for seed, number in whose]
    torch.manual_seed(5)
    again = [make_patch([picture(seed=1), picture(seed=2)], seed, number) for seed, number in reversed(whose)]
    assert all(same(one, other) for one, other in zip(made, reversed(again), strict=True))
    assert not any(same(one, other) for one, other in itertools.combinations(made, 2))


@pytest.mark.parametrize(("rows", "columns", "sides"), [(330, 270, {64, 80}), (1100, 800, {192, 256})])
def test_the_shape_of_a_patch(rows: int, columns: int, sides: set[int]) -> None:
    """The sides are multiples of 16 pixels, at most 1024 x 768, in either orientation."""
    patch = make_patch([picture(rows, columns)], 1, 1)
    height, width = patch.share.shape
    assert {height, width} == sides
    assert patch.seen.shape == (SEEN, height, width)
    assert patch.wanted.shape == patch.noise.shape == (LATENT, height, width)
    assert patch.point.shape == (3,)
    assert {part.dtype for part in (patch.seen, patch.wanted, patch.share, patch.noise)} == {torch.float16}
    assert patch.point.dtype == torch.float32
    assert all(bool(torch.isfinite(part).all()) for part in parts(patch))
    assert set(patch.share.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("scale", "distance"), [(1, 2.0), (2, 0.6), (4, 0.3)])
def test_what_is_wanted_has_unit_variance_and_so_has_noise(scale: int, distance: float) -> None:
    pixels = tissue()
    inside = np.ones(pixels.shape, dtype=bool)
    inside[:64, 192:] = False
    patch = patch_of(pixels, scale, distance, inside=inside)
    assert float(patch.wanted.float()[:, patch.share > 0].std()) == pytest.approx(1, abs=0.2)
    assert float(patch.noise.float().std()) == pytest.approx(1, abs=0.2)
    assert float(patch.wanted.abs().max()) <= 8
    assert not patch.share[:16, 48:].any()
    assert not patch.wanted[:, :16, 48:].any()
    base = code(pixels, scale, distance)
    residual = pixels - base.operator.lift(base.samples())
    wanted = to_pixels(patch.wanted.float()[None])[0, 0].numpy()
    there = np.corrcoef(wanted[inside], residual[inside])[0, 1]
    assert there > 0.9


def test_a_coarser_base_is_smaller_and_further_off() -> None:
    fine, coarse = code(tissue(), 2, 0.3), code(tissue(), 2, 3.0)
    assert len(fine.coded) > len(coarse.coded)
    assert fine.quantisation_rms < coarse.quantisation_rms
    samples = fine.samples()
    np.testing.assert_allclose(fine.operator.down(fine.operator.lift(samples)), samples, atol=0.05)


def test_every_scale_distance_and_orientation_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[tuple[Float, int, float]] = []
    empty = TrainingPatch(*[torch.zeros(1)] * 5)

    def note(
        pixels: Float, inside: NDArray[np.bool_], scale: int, distance: float, _: np.random.Generator
    ) -> TrainingPatch:
        assert inside.shape == pixels.shape
        assert inside.any()
        met.append((pixels, scale, distance))
        return empty

    monkeypatch.setattr(training_patches, "degrade", note)
    pictures = [picture(), picture(bits=8), picture(bits=14)]
    for number in range(120):
        make_patch(pictures, 1, number)
    scales = [scale for _, scale, _ in met]
    assert set(scales) == {1, 2, 4}
    assert scales.count(2) > scales.count(1) + scales.count(4)
    assert {pixels.shape for pixels, _, _ in met} == {(320, 256), (256, 320)}
    assert all(pixels.dtype == np.float32 and pixels.min() >= 0 and pixels.max() <= 4095 for pixels, _, _ in met)
    assert all(np.percentile(pixels, 99) > 300 for pixels, _, _ in met)  # whatever their bits, all are 12 now
    distances = [distance for _, scale, distance in met if scale == 2]
    assert 0.3 <= min(distances) < 0.4
    assert 3.5 < max(distances) <= 5


def test_crops_are_cut_at_whole_cells_and_belong_together() -> None:
    """In some orientation, the wanted crop is found in the patch, at the same place as the seen crop."""
    patch = patch_of(tissue())
    whole = to_pixels(patch.wanted.float()[None])[0, 0]
    views = [
        image
        for turned in (whole, whole.T)
        for image in (turned, turned.flip(0), turned.flip(1), turned.flip(0).flip(1))
    ]
    detail = to_pixels(patch.seen[:LATENT].float()[None])[0, 0]
    same_views = [
        image
        for turned in (detail, detail.T)
        for image in (turned, turned.flip(0), turned.flip(1), turned.flip(0).flip(1))
    ]
    seen, wanted, share, point, noise = crops([patch], 64, 12, np.random.default_rng(3))
    assert seen.shape == (12, SEEN, 16, 16)
    assert wanted.shape == noise.shape == (12, LATENT, 16, 16)
    assert share.shape == (12, 1, 16, 16)
    assert torch.equal(point, patch.point.expand(12, 3))
    found = set()
    for crop, its_detail in zip(to_pixels(wanted)[:, 0], to_pixels(seen[:, :LATENT])[:, 0], strict=True):
        for number, (view, other) in enumerate(zip(views, same_views, strict=True)):
            places = [
                (top, left)
                for top in range(0, 256 - 63, STRIDE)
                for left in range(0, 256 - 63, STRIDE)
                if torch.equal(view[top : top + 64, left : left + 64], crop)
            ]
            if places:
                (top, left) = places[0]
                assert torch.equal(other[top : top + 64, left : left + 64], its_detail)
                found.add(number)
    assert len(found) > 3


def test_the_grid_of_the_coder_turns_with_the_image() -> None:
    """A crop of a mirrored patch has the phases that the mirrored block would have: the sine is negated, the cosine is
    not."""
    patch = patch_of(tissue())
    cells = 64 // UNSHUFFLE
    seen, *_ = crops([patch], 64, 16, np.random.default_rng(3))
    squares = seen[:, -4:].square()
    torch.testing.assert_close(squares[:, 0] + squares[:, 1], torch.ones(16, cells, cells), atol=2e-3, rtol=0)
    torch.testing.assert_close(squares[:, 2] + squares[:, 3], torch.ones(16, cells, cells), atol=2e-3, rtol=0)
    steps = torch.atan2(seen[:, -4], seen[:, -3]).diff(dim=1)
    assert set(torch.sign(torch.sin(steps)).flatten().tolist()) == {1.0}  # whatever way it was turned
