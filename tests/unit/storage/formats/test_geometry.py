"""Proves that images of any shape are reduced to squares (storage/formats/geometry.py)."""

from __future__ import annotations

import numpy as np
import pytest

from storage.formats.geometry import cell_means, counts_at_half_steps, flat_cells, reduced


@pytest.mark.parametrize("shape", [(5, 7), (16, 16), (17, 33), (3, 100), (100, 3), (64, 48)])
def test_squares_at_the_border_are_reduced_over_what_they_have(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).integers(-1000, 1000, shape)
    rows, columns = (range(0, length, 16) for length in shape)
    for by, of_square in ((np.add, np.sum), (np.maximum, np.max)):
        expected = [[of_square(values[row : row + 16, column : column + 16]) for column in columns] for row in rows]
        np.testing.assert_array_equal(reduced(values, 16, by), expected)


def test_marks_are_reduced_in_their_own_type_or_another() -> None:
    marks = np.zeros((20, 20), dtype=bool)
    marks[18, 3] = True
    assert reduced(marks, 16, np.logical_or).tolist() == [[False, False], [True, False]]
    assert reduced(~marks, 16, np.add, np.int64).tolist() == [[256, 64], [63, 16]]


def test_cells_at_the_border_are_means_over_the_pixels_that_they_have() -> None:
    values = np.zeros((17, 20), dtype=np.float32)
    values[16] = 4
    values[:16, 16:] = 2
    assert cell_means(values).tolist() == [[0, 2], [4, 4]]
    values[0, 0] = 1
    assert flat_cells(values).tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("shape", [(64, 64), (100, 131), (40, 200), (10, 200), (200, 10), (20, 20)])
def test_marks_are_counted_at_half_steps(shape: tuple[int, int]) -> None:
    """An image that is smaller than a square has no square."""
    marks = np.random.default_rng(2).random(shape) < 0.5
    rows, columns = (range(0, length - 63, 32) for length in shape)
    expected = [[int(marks[row : row + 64, column : column + 64].sum()) for column in columns] for row in rows]
    found = counts_at_half_steps(marks, 64)
    assert found.size == sum(map(len, expected))
    assert not found.size or found.tolist() == expected
