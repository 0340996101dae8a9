"""Images, noise models and tasks for tests of the codec and of upscalers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy.ndimage import gaussian_filter

from node.codec.encode.source_image import Source
from node.codec.noise import (
    LEVELS,
    PLACE,
    SPECTRUM,
    NoiseModel,
    unit_noise,
)
from node.fidelity.reference import Reference
from node.upscalers.protocol import UpscaleTask
from storage.dicom.dicomfile import HeaderBytes
from storage.dicom.writing import encode
from storage.formats.resample import Operator
from storage.records import OperatingPoint
from tests.support.samples import mammogram

FULL = np.uint8(192)
"""The code of the place map that means: as the curve says (a factor of 1, times 256)."""


def level_code(deviation: float) -> int:
    """The code of a standard deviation by docs/FORMATS.md."""
    return round(128 + 8 * np.log2(deviation))


def soft(cutoff: float = 0.18) -> NDArray[np.uint8]:
    """A spectrum that falls off like a detector's in all directions: a Gaussian of that width."""
    down, across = np.linspace(-0.5, 0.5, SPECTRUM[0])[:, None], np.linspace(0, 0.5, SPECTRUM[1])[None]
    power = np.exp(-(down**2 + across**2) / (2 * cutoff**2))
    return np.rint(255 + np.log2(power) / 0.25).clip(1).astype(np.uint8)


def model(rows: int = 600, columns: int = 700, deviation: float = 20.0, **changes: Any) -> NoiseModel:
    cells = -(-rows // PLACE), -(-columns // PLACE)
    flat = NoiseModel(
        *(rows, columns, 0.0, 4095.0),
        curve=np.full(LEVELS, level_code(deviation), dtype=np.uint8),
        place=np.full(cells, FULL, dtype=np.uint8),
        spectrum=soft(),
    )
    return replace(flat, **changes)


Pixels = NDArray[np.uint16]


@cache
def phantom(rows: int = 640, columns: int = 544, bits: int = 12) -> Pixels:
    """Tissue without edges and a detector's noise that grows with the grey level, falling off to air of value 0."""
    random = np.random.default_rng(4)
    y, x = np.mgrid[0:rows, 0:columns]
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequency[0, 0] = 1
    tissue = np.fft.irfft2(np.fft.rfft2(random.standard_normal((rows, columns))) / frequency**2.4, s=(rows, columns))
    skin = 0.5 + 0.5 * np.cos(np.pi * np.clip((np.hypot(y - rows / 2, x) - columns * 0.55) / (columns * 0.3), 0, 1))
    level = (1700 + 250 * tissue / tissue.std()).clip(300) * skin
    noise = unit_noise(slice(0, rows), slice(0, columns), soft(), 8) * (3 + 0.25 * np.sqrt(level))
    for row, column in ((250, 120), (262, 131), (258, 144), (400, 220)):
        level += 160 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 1.5**2))
    image = np.where(skin > 0, level + noise, 0) * ((1 << bits) - 1) / 4095
    return np.clip(np.rint(image), 0, (1 << bits) - 1).astype(np.uint16)


def with_implant(noise: float = 0.0) -> Pixels:
    """The phantom with an implant that is clipped at 4,095. ``noise``: standard deviation of additional noise in the
    tissue, in grey levels."""
    pixels = phantom().astype(np.float64)
    pixels += np.where(pixels > 0, noise * np.random.default_rng(1).standard_normal(pixels.shape), 0)
    row, column = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    inside = np.clip(12 - 12 * np.hypot(row - 320, column) ** 2 / 200**2, 0, 1)
    inside = gaussian_filter(inside, 3)
    return np.clip(np.rint(pixels * (1 - inside) + 4300 * inside), 0, 4095).astype(np.uint16)


def source_of(pixels: Pixels, bits: int = 12, **changes: Any) -> tuple[Source, Reference]:
    """The source and the reference of an image of at least 256 pixels a side."""
    source, ds = _source_and_header(pixels, bits, changes)
    return source, Reference(pixels, ds)


def source_alone(pixels: Pixels) -> Source:
    """The source of an image of any size, of which nothing is measured."""
    return _source_and_header(pixels, 12, {})[0]


def _source_and_header(pixels: Pixels, bits: int, changes: dict[str, Any]) -> tuple[Source, Dataset]:
    own = {"WindowCenter": 1 << (bits - 1), "WindowWidth": 1 << bits}
    own |= dict.fromkeys(("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"), "1.2.3")
    ds = mammogram(pixels, bits=bits, **(own | changes))
    header = HeaderBytes(str(ExplicitVRLittleEndian), encode(ds[:0x7FE00010], ExplicitVRLittleEndian), b"")
    return Source.of(pixels, ds, header, "0" * 64, "OW"), ds


def task_of(samples: np.ndarray, operator: Operator, seed: int = 7, steps: int = 2) -> UpscaleTask:
    upsampled = operator.up(samples)
    point, nothing = OperatingPoint(operator.scale, "png16"), np.zeros_like(upsampled)
    return UpscaleTask(samples, operator, upsampled, point, 0.0, nothing, seed, steps)
