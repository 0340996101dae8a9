"""Makes mammogram phantoms of two classes: a planted sign that survives compression, and one that cannot.

``coarse`` is a soft, round density like a mass, tens of pixels wide, which every quantiser keeps. ``fine`` is a
checkerboard of single pixels in a part of the breast, at the Nyquist limit, which downsampling by two or four removes.
Features of a ResNet50 with random weights show both: the pooled stem and first stage respond to local contrast, and the
deeper stages to brightness.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from benchmarks.samples import mammogram, write

COARSE, FINE = "coarse", "fine"
BITS = 12


def phantom(rows: int, columns: int, seed: int, sign: str = "") -> NDArray[np.uint16]:
    """A breast at the left edge, 58% of the frame wide, with 1/f tissue and noise. ``sign``: the planted sign."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    inside = ((y - rows / 2) / (rows * 0.40)) ** 2 + (x / (columns * 0.58)) ** 2 < 1
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None, :])
    frequency[0, 0] = 1
    noise = np.fft.rfft2(random.standard_normal((rows, columns), dtype=np.float32))
    tissue = np.fft.irfft2(noise / frequency**1.6, s=(rows, columns))
    tissue = tissue / tissue.std() - tissue.mean() / tissue.std()
    image = 0.45 + 0.06 * tissue + 0.004 * random.standard_normal((rows, columns))
    row, column = rows * random.uniform(0.38, 0.62), columns * random.uniform(0.18, 0.32)
    near = ((y - row) ** 2 + (x - column) ** 2) / (rows * 0.11) ** 2
    if sign == COARSE:
        image += 0.5 * np.exp(-near / 2)
    elif sign == FINE:
        image += 0.2 * (near < 2) * ((x + y) % 2 * 2 - 1)
    return np.where(inside, np.clip(image, 0.05, 1.0) * ((1 << BITS) - 1), 0).astype(np.uint16)


def cohort(folder: Path, images: int, sign: str, *, rows: int, columns: int) -> tuple[list[Path], Path]:
    """Write ``images`` phantoms, two per patient, every second patient with ``sign``; return files and label file."""
    folder.mkdir(parents=True, exist_ok=True)
    files, lines = [], ["sop_instance_uid,class"]
    for number in range(images):
        patient, planted = number // 2, number // 2 % 2 == 1
        ds: Dataset = mammogram(phantom(rows, columns, number, sign if planted else ""), PatientID=f"T{patient:04d}")
        files.append(write(ds, folder / f"{number:04d}.dcm"))
        lines.append(f"{ds.SOPInstanceUID},{'sign' if planted else 'plain'}")
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files, labels
