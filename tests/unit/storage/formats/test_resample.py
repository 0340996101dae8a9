"""Proves that the operators D and U of storage.formats.resample equal torch's, and that the lift is a right inverse of
D.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage.formats.resample import OPERATOR, Operator
from tests.support.exact_operator import axis_matrix
from tests.support.samples import breast

TOP = 4095
"""Grey levels of 12 bits, to which the tolerances relate."""

SIZES = [
    *((2, 1), (3, 2), (4, 2), (5, 3), (7, 4), (8, 4), (16, 8), (33, 17), (64, 32), (101, 51), (255, 128), (256, 128)),
    *((4, 1), (5, 2), (8, 2), (9, 3), (63, 16), (64, 16), (65, 17), (257, 65)),
]
SHAPES = [(24, 30), (33, 47), (64, 64), (75, 52), (128, 101), (9, 200), (200, 9)]


def picture(rows: int, columns: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Noise over the full range, the worst case of an image."""
    return np.random.default_rng(seed).uniform(0, TOP, (rows, columns)).astype(np.float32)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the axis matrix ------------------------------------------------------------------------------------------


def of_torch(size_in: int, size_out: int) -> NDArray[np.float64]:
    """The matrix of torch's resize along one axis: the resized identity matrix."""
    identity = torch.eye(size_in, dtype=torch.float64)[None, None]
    resized = torch.nn.functional.interpolate(
        identity, size=(size_out, size_in), mode="bicubic", antialias=True, align_corners=False
    )
    return resized[0, 0].numpy()


@pytest.mark.parametrize(("large", "small"), SIZES)
def test_axis_matrix_is_torchs_resize_of_the_identity(large: int, small: int) -> None:
    for size_in, size_out in ((large, small), (small, large)):
        matrix = axis_matrix(size_in, size_out)
        assert matrix.shape == (size_out, size_in)
        np.testing.assert_allclose(matrix.toarray(), of_torch(size_in, size_out), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(size_in=st.integers(1, 90), size_out=st.integers(1, 90))
def test_axis_matrix_is_torchs_for_any_two_sizes(size_in: int, size_out: int) -> None:
    matrix = axis_matrix(size_in, size_out)
    np.testing.assert_allclose(matrix.toarray(), of_torch(size_in, size_out), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1, rtol=0, atol=1e-12)


def test_axis_matrix_between_equal_sizes_is_the_identity() -> None:
    np.testing.assert_allclose(axis_matrix(17, 17).toarray(), np.eye(17), rtol=0, atol=1e-15)


def test_axis_matrix_is_sparse() -> None:
    matrix = axis_matrix(4000, 2000)
    assert matrix.nnz <= 8 * 2000  # the stretched kernel is eight pixels wide at scale 2
    assert axis_matrix(2000, 4000).nnz <= 4 * 4000


# --- the operator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_down_is_torchvisions_antialiased_bicubic_resize(shape: tuple[int, int], scale: int) -> None:
    from torchvision.transforms.v2 import InterpolationMode, functional

    operator, image = Operator(*shape, scale), picture(*shape)
    small = (-(-shape[0] // scale), -(-shape[1] // scale))
    assert (operator.low_rows, operator.low_columns) == small
    expected = functional.resize(
        torch.from_numpy(image)[None], list(small), interpolation=InterpolationMode.BICUBIC, antialias=True
    )[0].numpy()
    assert operator.down(image).dtype == np.float32
    assert np.array_equal(operator.down(image), expected)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_down_and_up_are_the_axis_matrices(shape: tuple[int, int], scale: int) -> None:
    operator, image = Operator(*shape, scale), picture(*shape)
    rows, columns = axis_matrix(shape[0], operator.low_rows), axis_matrix(shape[1], operator.low_columns)
    np.testing.assert_allclose(operator.down(image), rows @ image @ columns.T, rtol=0, atol=5e-6 * TOP)
    small = picture(operator.low_rows, operator.low_columns, seed=1)
    rows, columns = axis_matrix(operator.low_rows, shape[0]), axis_matrix(operator.low_columns, shape[1])
    up = operator.up(small)
    assert (up.shape, up.dtype) == (shape, np.float32)
    np.testing.assert_allclose(up, rows @ small @ columns.T, rtol=0, atol=5e-6 * TOP)


def test_grey_levels_keep_their_meaning() -> None:
    flat = np.full((37, 50), 1234, np.uint16)
    for scale in (2, 4):
        operator = Operator(37, 50, scale)
        np.testing.assert_allclose(operator.down(flat), 1234, rtol=0, atol=1e-3)
        np.testing.assert_allclose(operator.up(operator.down(flat)), 1234, rtol=0, atol=1e-3)
        np.testing.assert_allclose(operator.lift(operator.down(flat)), 1234, rtol=0, atol=1e-3)
    assert OPERATOR == "torchvision-bicubic-antialias/1"  # every base records it: another D needs another name


def test_stored_values_and_floats_downsample_alike() -> None:
    pixels = breast(75, 52, bits=16)
    operator = Operator(75, 52, 2)
    assert np.array_equal(operator.down(pixels), operator.down(pixels.astype(np.float32)))


# --- lift and project -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (1, 40), (2, 3), (5, 5), (4, 9), (513, 260)])
def test_down_inverts_the_lift(shape: tuple[int, int], scale: int) -> None:
    operator = Operator(*shape, scale)
    small = picture(operator.low_rows, operator.low_columns)
    lifted = operator.lift(small)
    assert (lifted.shape, lifted.dtype) == (shape, np.float32)
    np.testing.assert_allclose(operator.down(lifted), small, rtol=0, atol=1e-3 * TOP)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(5, 70), scale=st.sampled_from([2, 4]), seed=st.integers(0, 99))
def test_down_inverts_the_lift_at_any_size(rows: int, columns: int, scale: int, seed: int) -> None:
    operator = Operator(rows, columns, scale)  # torch resizes images one column wide incorrectly
    small = picture(operator.low_rows, operator.low_columns, seed=seed)
    np.testing.assert_allclose(operator.down(operator.lift(small)), small, rtol=0, atol=1e-3 * TOP)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_project_makes_any_image_consistent(shape: tuple[int, int], scale: int) -> None:
    operator, image = Operator(*shape, scale), picture(*shape)
    base = picture(operator.low_rows, operator.low_columns, seed=2)
    before = image.copy(), base.copy()
    assert np.abs(operator.down(image) - base).max() > TOP / 10
    projected = operator.project(image, base)
    assert (projected.shape, projected.dtype) == (shape, np.float32)
    np.testing.assert_allclose(operator.down(projected), base, rtol=0, atol=1e-3 * TOP)
    assert np.array_equal(image, before[0])
    assert np.array_equal(base, before[1])


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_project_is_idempotent(shape: tuple[int, int], scale: int) -> None:
    operator = Operator(*shape, scale)
    base = picture(operator.low_rows, operator.low_columns, seed=2)
    once = operator.project(picture(*shape), base)
    np.testing.assert_allclose(operator.project(once, base), once, rtol=0, atol=1e-3 * TOP)


def test_project_keeps_a_consistent_image_and_changes_another_as_little_as_possible() -> None:
    pixels = breast(128, 101).astype(np.float32)
    operator = Operator(128, 101, 2)
    np.testing.assert_allclose(operator.project(pixels, operator.down(pixels)), pixels, rtol=0, atol=1e-3)
    bicubic = operator.up(operator.down(pixels))
    projected = operator.project(bicubic, operator.down(pixels))
    # a projection onto a set that contains the original cannot move away from it
    assert np.square(projected - pixels).mean() < np.square(bicubic - pixels).mean()


@pytest.mark.parametrize(("scale", "border"), [(2, 16), (4, 32)])
def test_away_from_the_border_the_lift_is_the_orthogonal_projection(scale: int, border: int) -> None:
    """x + lift(y - D x) equals x + D^T (D D^T)^-1 (y - D x), the smallest consistent change (dense matrices here)."""
    rows, columns = 80, 96
    operator = Operator(rows, columns, scale)
    pseudo = [np.linalg.pinv(axis_matrix(size, -(-size // scale)).toarray()) for size in (rows, columns)]
    residual = picture(operator.low_rows, operator.low_columns) - TOP / 2
    orthogonal = pseudo[0] @ residual @ pseudo[1].T
    lifted = operator.lift(residual)
    inside = (slice(border, -border), slice(border, -border))
    assert lifted[inside].size > 256
    np.testing.assert_allclose(lifted[inside], orthogonal[inside], rtol=0, atol=2e-3 * TOP)
    assert np.abs(lifted - orthogonal).max() > np.abs(lifted - orthogonal)[inside].max()  # it differs at the border


@pytest.mark.parametrize("scale", [2, 4])
def test_up_is_the_transpose_of_down_away_from_the_border(scale: int) -> None:
    size = 96
    down, up = axis_matrix(size, size // scale).toarray(), axis_matrix(size // scale, size).toarray()
    inside = slice(4 * scale, -4 * scale)
    np.testing.assert_allclose(up[inside], scale * down.T[inside], rtol=0, atol=1e-12)


# --- numerics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 4])
def test_the_number_of_threads_does_not_change_a_bit(scale: int) -> None:
    rows, columns = 513, 386
    operator, image = Operator(rows, columns, scale), picture(rows, columns)
    base = picture(operator.low_rows, operator.low_columns, seed=2)
    results = []
    for threads in (1, 2, 1):
        with torch_threads(threads):
            assert torch.get_num_threads() == threads
            results.append(
                [operator.down(image), operator.up(base), operator.lift(base), operator.project(image, base)]
            )
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            assert np.array_equal(first.view(np.uint32), other.view(np.uint32))


def test_the_layout_in_memory_does_not_change_a_bit() -> None:
    operator, image = Operator(75, 52, 2), picture(75, 52)
    base = picture(operator.low_rows, operator.low_columns, seed=2)
    expected = operator.project(image, base)
    assert np.array_equal(operator.project(np.asfortranarray(image), np.asfortranarray(base)), expected)
    wide = np.repeat(image, 2, axis=1)
    assert np.array_equal(operator.project(wide[:, ::2], base), expected)


def test_read_only_images_are_accepted() -> None:
    operator, image = Operator(75, 52, 2), picture(75, 52)
    expected = operator.down(image)
    image.flags.writeable = False
    assert np.array_equal(operator.down(image), expected)
