"""An image for tests of the benchmark of calcifications."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from benchmarks.coded import Image, described
from node.fidelity.breast_regions import breast_mask
from node.training.image_files import Picture


def image(rows: int = 800, columns: int = 700) -> Image:
    """Smooth tissue with the blurred noise of a detector."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    inside = ((y - rows / 2) / (rows * 0.46)) ** 2 + (x / (columns * 0.9)) ** 2 < 1
    image = 1500 + 200 * np.sin(y / 90) * np.cos(x / 70)
    image += 30 * gaussian_filter(random.standard_normal((rows, columns)), 0.7)
    pixels = np.where(inside, image, 0).astype(np.uint16)
    header = Dataset()
    header.PhotometricInterpretation = "MONOCHROME2"
    return described(Picture("test", pixels, 12, header, False, breast_mask(pixels, "MONOCHROME2")), "test")
