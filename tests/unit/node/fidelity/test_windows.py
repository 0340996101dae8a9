"""Proves how values are displayed, and which window of a header is used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from node.fidelity.breast_regions import Shape, Window, breast_mask
from node.fidelity.windows import display_window, is_inverted
from tests.support.samples import breast, mammogram

PIXELS = breast()
MASK = breast_mask(PIXELS, "MONOCHROME2")


def window_of(**changes: Any) -> Window:
    return display_window(mammogram(PIXELS, **changes), PIXELS, MASK)


def is_from_the_breast(window: Window) -> bool:
    return window == window_of(WindowCenter=None, WindowWidth=None)


# --- showing --------------------------------------------------------------------------------------------------


def by_the_standard(x: float, centre: float, width: float, shape: Shape) -> float:
    """The displayed value, from 0 to 1, by PS3.3 C.11.2.1.2.1, C.11.2.1.3.2 and C.11.2.1.3.1."""
    if shape == "sigmoid":
        return float(1 / (1 + np.exp(-4 * (x - centre) / width)))
    if shape == "linear_exact":
        return float(np.clip((x - centre) / width + 0.5, 0, 1))
    return float(np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))


@pytest.mark.parametrize(
    ("function", "shape"), [("", "linear"), ("LINEAR_EXACT", "linear_exact"), ("SIGMOID", "sigmoid")]
)
def test_values_are_shown_as_the_standard_says(function: str, shape: Shape) -> None:
    window = window_of(WindowCenter=2048, WindowWidth=1000, VOILUTFunction=function)
    assert window.shape == shape
    values = np.arange(0, 4096, 7)
    expected = [by_the_standard(float(x), 2048, 1000, shape) for x in values]
    assert np.allclose(window.show(values), expected, atol=1e-5)


@pytest.mark.parametrize("slope", [-1, -0.5, 0.5, 2])
def test_a_rescaled_linear_window_is_shown_as_the_standard_says(slope: float) -> None:
    window = window_of(WindowCenter=2000 * slope, WindowWidth=1000, RescaleSlope=slope)
    assert window.width == 1000 / abs(slope)
    values = np.arange(0, 4096, 7)
    expected = np.array([by_the_standard(float(x) * slope, 2000 * slope, 1000, "linear") for x in values])
    assert np.allclose(window.show(values), expected if slope > 0 else 1 - expected, atol=1e-5)


def test_a_sigmoid_far_away_does_not_overflow() -> None:
    shown = Window(100, 101, "sigmoid").show(np.array([0, 65535], np.uint16))
    assert shown.tolist() == [pytest.approx(0, abs=1e-6), pytest.approx(1)]
    assert shown.dtype == np.float32


# --- which one ------------------------------------------------------------------------------------------------


def test_the_first_of_several() -> None:
    several = window_of(WindowCenter=[2000, 1500], WindowWidth=[1000, 3000])
    assert (several.low, several.high) == (1500, 2500)


@pytest.mark.parametrize(
    ("centre", "width"),
    [
        ([0, 2000], [1, 1000]),  # a width of 1 is a threshold
        ([2000, 2000], [0, 1000]),
        ([2000, 2000], [-5, 1000]),
        ([60000, 2000], [100, 1000]),  # misses the breast
        ([-900, 2000], [100, 1000]),
        ([2000, 2000], [16000, 1000]),  # so wide that no error would show
    ],
)
def test_absurd_windows_are_passed_over(centre: list[int], width: list[int]) -> None:
    taken = window_of(WindowCenter=centre, WindowWidth=width)
    assert (taken.low, taken.high) == (1500, 2500)
    assert is_from_the_breast(window_of(WindowCenter=centre[:1], WindowWidth=width[:1]))


def table(values: list[int], first: int = 0, bits: int = 16) -> Sequence:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(values) % 65536, first, bits])
    item.add_new(0x00283006, "US", values)
    return Sequence([item])


def test_a_voi_table_without_a_window() -> None:
    values = [0] * 1000 + [16 * each for each in range(2000)] + [32000] * 1096
    taken = window_of(WindowCenter=None, WindowWidth=None, VOILUTSequence=table(values))
    assert (taken.low, taken.high) == (pytest.approx(1020, abs=2), pytest.approx(2980, abs=2))
    both = window_of(VOILUTSequence=table(values))
    assert (both.low, both.high) == (0, 4096), "where there is a window it comes first"
    step = window_of(WindowCenter=None, WindowWidth=None, VOILUTSequence=table([0] * 2000 + [9] * 2096))
    assert is_from_the_breast(step)
    moved = window_of(WindowCenter=None, WindowWidth=None, VOILUTSequence=table(list(range(2000)), first=1000))
    assert (moved.low, moved.high) == (pytest.approx(1020, abs=2), pytest.approx(2980, abs=2))


def test_rescale_and_modality_table() -> None:
    scaled = window_of(WindowCenter=-100, WindowWidth=501, RescaleSlope="0.25", RescaleIntercept="-600")
    assert (scaled.low, scaled.high) == (998, 3002)
    falling = window_of(WindowCenter=2000, WindowWidth=1001, RescaleSlope=-1, RescaleIntercept=4095)
    assert (falling.low, falling.high) == (1594.5, 2595.5)
    by_table = window_of(WindowCenter=8000, WindowWidth=4001, ModalityLUTSequence=table([4 * n for n in range(4096)]))
    assert (by_table.low, by_table.high) == (pytest.approx(1500, abs=1), pytest.approx(2500, abs=1))


@pytest.mark.parametrize(
    ("changes", "inverted"),
    [
        ({}, False),
        ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}, True),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, True),
        ({"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": -1}, False),
        ({"ModalityLUTSequence": table(list(range(4095, -1, -1)))}, True),
    ],
)
def test_which_end_is_dense(changes: dict[str, Any], inverted: bool) -> None:
    assert is_inverted(mammogram(PIXELS, **changes)) == inverted


odd = st.one_of(
    st.none(),
    st.floats(),
    st.integers(-(10**9), 10**9),
    st.text(max_size=8),
    st.binary(max_size=9),
    st.lists(st.one_of(st.floats(), st.text(max_size=4), st.none()), max_size=4),
)


class Header(dict[str, Any]):
    """The part of a data set that is read here: ``get`` by keyword."""


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    header=st.dictionaries(
        st.sampled_from(
            [
                "WindowCenter",
                "WindowWidth",
                "RescaleSlope",
                "RescaleIntercept",
                "VOILUTFunction",
                "VOILUTSequence",
                "ModalityLUTSequence",
                "PhotometricInterpretation",
            ]
        ),
        odd,
    )
)
def test_any_header_gives_a_window(header: dict[str, Any]) -> None:
    window = display_window(Header(header), PIXELS, MASK)  # type: ignore[arg-type]
    assert np.isfinite(window.width)
    assert window.width > 0
    shown = window.show(PIXELS[:64, :64])
    assert shown.min() >= 0
    assert shown.max() <= 1


@settings(max_examples=100, deadline=None)
@given(
    descriptor=st.lists(st.integers(-5, 70000), max_size=4),
    data=st.one_of(st.binary(max_size=40), st.lists(st.integers(0, 65535), max_size=20)),
)
def test_any_table_gives_a_window(descriptor: list[int], data: bytes | list[int]) -> None:
    item = Dataset()
    item.__dict__["get"] = {"LUTDescriptor": descriptor, "LUTData": data}.get
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        header = Header({keyword: Sequence([item]), "WindowCenter": 2000, "WindowWidth": 500})
        assert display_window(header, PIXELS, MASK).width > 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "keyword",
    [
        *("PhotometricInterpretation", "VOILUTFunction", "WindowCenter", "WindowWidth", "VOILUTSequence"),
        *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    ],
)
def test_an_element_that_cannot_be_read_gives_a_window(keyword: str) -> None:
    header = Dataset()
    tag = BaseTag(tag_for_keyword(keyword) or 0)
    header[tag] = RawDataElement(tag, "FD", 3, b"abc", 0, False, True, True)
    assert display_window(header, PIXELS, MASK).width > 0
    assert is_inverted(header) is False
