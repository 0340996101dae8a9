"""Proves what a reference counts as breast (node/fidelity/reference.py)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from node.fidelity.gate import measure_structure
from node.fidelity.reference import Reference
from tests.support.encoder_samples import source_of


def tissue_clipped_from(row: int, top: int) -> tuple[Reference, NDArray[np.float32]]:
    """The reference of tissue with noise to the left of air, clipped at ``top`` from ``row`` down, and the tissue
    without noise."""
    tissue = np.full((640, 800), 2000.0)
    tissue[row:] = top
    noise = np.where(tissue == top, 0, 8 * np.random.default_rng(3).standard_normal(tissue.shape))
    tissue[:, 640:] = noise[:, 640:] = 10
    _, reference = source_of(np.rint(tissue + noise).astype(np.uint16))
    return reference, tissue.astype(np.float32)


@pytest.mark.parametrize("top", [4095, 3600])
def test_clipped_cells_are_not_of_the_breast(top: int) -> None:
    reference, _ = tissue_clipped_from(328, top)
    assert reference.core[32:336, 32:608].all(), "a cell that is clipped in part counts"
    assert not reference.core[336:].any()


def test_cells_of_one_value_within_the_range_stay() -> None:
    reference, _ = tissue_clipped_from(640, 4095)
    pixels = reference.pixels.copy()
    pixels[320:480, 320:480] = 2000
    assert source_of(pixels)[1].core[320:480, 320:480].all()


def test_lost_noise_beside_a_clipped_area_is_as_elsewhere() -> None:
    """If clipped pixels counted, the measured noise beside them would be half of the true noise, and all errors would
    exceed it."""
    reference, tissue = tissue_clipped_from(376, 4095)
    found = measure_structure(reference, tissue, specks=False)
    assert found.lines.worst[0].max() < 7
    assert found.lines.percentile(0.999)[0] < 4.5
