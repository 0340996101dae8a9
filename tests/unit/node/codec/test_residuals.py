"""Proves that coded residuals (node/codec/residuals.py) restore their cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from node.codec.residuals import CodedResiduals, decode_residuals, encode_residuals
from storage.errors import PayloadError
from storage.formats.geometry import CELL, cell_pixels

Float = NDArray[np.float32]


def residual(rows: int, columns: int, unit: float, seed: int = 0) -> Float:
    return (unit * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)


def some(rows: int, columns: int, share: float, seed: int = 0) -> NDArray[np.bool_]:
    cells = np.random.default_rng(seed).random((-(-rows // CELL), -(-columns // CELL))) < share
    cells[-1, 0] = True
    return cells


def restored(repairs: CodedResiduals) -> Float:
    return decode_residuals(encode_residuals(repairs)).field()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.floats(0, 1), st.sampled_from([0.3, 5.0, 700.0]))
def test_bytes_and_back(rows: int, columns: int, share: float, unit: float) -> None:
    cells = some(rows, columns, share)
    made = CodedResiduals.of(residual(rows, columns, unit), cells, unit)
    back = decode_residuals(encode_residuals(made))
    assert (back.rows, back.columns, back.coded) == (rows, columns, made.coded)
    assert back.unit == np.float32(unit)
    assert np.array_equal(back.cells, cells)
    field = back.field()
    assert (field.shape, field.dtype) == ((rows, columns), np.float32)
    assert np.array_equal(field, made.field()), "the encoder measures what the decoder gets"
    assert np.array_equal(field != 0, (field != 0) & cell_pixels(cells, rows, columns))


@pytest.mark.parametrize("unit", [0.3, 12.0, 700.0])
def test_noise_is_coded_to_within_its_own_size(unit: float) -> None:
    """For a detector's noise, the RMS of the remaining error in standard deviations does not depend on the unit."""
    noise = gaussian_filter(residual(389, 512, 1.0), 0.7)
    wanted, cells = noise * np.float32(unit / noise.std()), some(389, 512, 0.5)
    inside = cell_pixels(cells, 389, 512)
    left = (restored(CodedResiduals.of(wanted, cells, unit)) - wanted)[inside] / unit
    assert np.sqrt(np.mean(np.square(left))) < 0.6
    assert np.abs(left).max() < 5


@pytest.mark.parametrize("size", [100, 1000])
def test_great_errors_fit(size: float) -> None:
    """A missing marker of 1000 standard deviations of noise comes back to within a few percent."""
    wanted = residual(256, 256, 3.0)
    wanted[64:128, 64:160] -= 3 * size
    wanted[160:224, 32:96] += 3 * size
    cells = np.zeros((16, 16), dtype=bool)
    cells[3:9, 3:11] = cells[9:15, 1:7] = True
    off = np.abs(restored(CodedResiduals.of(wanted, cells, 3.0)) - wanted) / (3 * size)
    great = np.abs(wanted) > 2 * size
    assert np.percentile(off[great], 99) < 0.1
    assert off[great].max() < 0.6
    assert np.sqrt(np.mean(np.square(off[cell_pixels(cells, 256, 256)]))) < 0.05


def test_cells_at_the_border_reach_only_to_it() -> None:
    wanted = residual(35, 50, 10.0)
    cells = np.zeros((3, 4), dtype=bool)
    cells[2, 3] = True
    field = restored(CodedResiduals.of(wanted, cells, 10.0))
    assert not field[:32].any()
    assert not field[:, :48].any()
    assert np.corrcoef(field[32:, 48:].ravel(), wanted[32:, 48:].ravel())[0, 1] > 0.6, "and there they are right"


# --- damage ---------------------------------------------------------------------------------------------------

WHOLE = encode_residuals(CodedResiduals.of(residual(100, 90, 4.0), some(100, 90, 0.4), 4.0))


@pytest.mark.parametrize("end", range(0, len(WHOLE), 97))
def test_every_truncation_is_an_error(end: int) -> None:
    with pytest.raises(PayloadError):
        decode_residuals(WHOLE[:end]).field()


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), piece=st.binary(min_size=1, max_size=6))
def test_damage_is_an_error_or_a_field(at: int, piece: bytes) -> None:
    damaged = bytearray(WHOLE)
    damaged[at : at + len(piece)] = piece
    try:
        found = decode_residuals(bytes(damaged))
        field = found.field()
    except PayloadError:
        return
    assert field.shape == (found.rows, found.columns)


@given(st.binary(max_size=60))
def test_hostile_bytes(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_residuals(data)


def test_no_cell_at_all_is_an_error() -> None:
    made = CodedResiduals.of(residual(64, 64, 1.0), np.eye(4, dtype=bool), 1.0)
    none = CodedResiduals(64, 64, 1.0, np.zeros((4, 4), dtype=bool), made.coded)
    with pytest.raises(PayloadError, match="no cell is marked"):
        decode_residuals(encode_residuals(none))


@pytest.mark.parametrize("unit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_unit_that_is_none_is_an_error(unit: float) -> None:
    made = CodedResiduals(64, 64, unit, np.eye(4, dtype=bool), b"")
    with pytest.raises(PayloadError, match="unit"):
        decode_residuals(encode_residuals(made))


def test_a_codestream_of_other_cells_is_an_error() -> None:
    few, many = (CodedResiduals.of(residual(300, 300, 1.0), some(300, 300, share), 1.0) for share in (0.01, 0.9))
    with pytest.raises(PayloadError, match="codestream holds"):
        CodedResiduals(300, 300, 1.0, many.cells, few.coded).field()
