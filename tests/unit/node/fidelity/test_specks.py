"""Proves which bright places count as specks: strong ones beside threads do, threads do not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from node.fidelity.specks import HALO, STRONG, Truth, truth_of
from storage.formats.geometry import TILE

Float = NDArray[np.float32]

SIDE = TILE + 2 * HALO
ROW, COLUMN = 120, 130
GRAIN = 20.0


def tile(speck: float, thread: float) -> Float:
    """Noise with a round speck on a horizontal thread. ``speck``, ``thread``: their peaks in grey levels."""
    image = np.random.default_rng(4).normal(1000, GRAIN, (SIDE, SIDE))
    rows, columns = (np.arange(SIDE) - HALO - middle for middle in (ROW, COLUMN))
    image += thread * np.exp(-np.square(rows[:, None] / 1.3) / 2)
    image += speck * np.exp(-(np.square(rows[:, None] / 1.3) + np.square(columns[None] / 1.3)) / 2)
    return image.astype(np.float32)


def found(image: Float) -> Truth:
    return truth_of(image, np.ones((TILE // 16, TILE // 16), dtype=bool), 1.0)


def strengths_near(truth: Truth) -> list[float]:
    """Strengths of the specks within 3 pixels of the planted one."""
    near = np.hypot(truth.specks.rows - ROW, truth.specks.columns - COLUMN) <= 3
    return [float(strength) for strength in truth.specks.strengths[near]]


@pytest.mark.parametrize("thread", [0, 40, 60])
def test_a_strong_speck_is_listed_alone_or_on_a_thread(thread: float) -> None:
    (strength,) = strengths_near(found(tile(80, thread)))
    assert strength > STRONG


@pytest.mark.parametrize("thread", [120, 200])
def test_a_thread_is_no_speck(thread: float) -> None:
    truth = found(tile(0, thread))
    assert float(truth.strongest[ROW, COLUMN]) > STRONG
    assert not (np.abs(truth.specks.rows - ROW) <= 3).any()
