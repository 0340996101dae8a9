"""Draws an image with the exact patches, repairs and points of its rendition, and a legend."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from node.archive.instance_report import InstanceReport, RenditionReport
from node.cli.picture import grey
from node.codec.rendering import Rendering, read_pair, verified
from node.config import ReconstructSettings
from node.fidelity.reference import Reference
from node.upscalers.catalogue import Catalogue
from storage.dicom.dicomfile import opened
from storage.dicom.pixels import integer_pixels
from storage.errors import ConfigError, ObjectMissing
from storage.formats.geometry import CELL
from storage.formats.packed_original import restore_original
from storage.objects.store import ObjectStore

_LONGER_SIDE = 1200
"""Longer side of the drawn image, in pixels."""
_LINE = 26
"""Height of a line of the legend, in pixels."""
_PATCH, _REPAIR, _POINT = (255, 170, 0), (255, 90, 160), (0, 220, 255)
_TEXT, _GROUND = (235, 235, 235), (24, 24, 24)


def draw_report(report: InstanceReport, store: ObjectStore, settings: ReconstructSettings, target: Path) -> None:
    """Write the picture as PNG. Raises ConfigError, ObjectMissing, PixelError or ModelMissing."""
    pixels, header, source = _image(report, store, settings)
    made = report.rendition
    sheet = _sheet(_shown(pixels, header), made, _legend(report, made, source))
    try:
        sheet.save(target, format="PNG")
    except OSError as error:
        raise ConfigError(f"--picture: {target} cannot be written: {error.strerror or error}") from error


def _image(
    report: InstanceReport, store: ObjectStore, settings: ReconstructSettings
) -> tuple[NDArray[np.uint16], Dataset, str]:
    """Pixels, header and their source: the original if it is held, otherwise the reconstruction."""
    file, made = report.original.file, report.rendition
    if file is not None:
        with tempfile.TemporaryDirectory() as folder:
            if report.original.form == "packed":
                packed, file = file, Path(folder) / "original"
                restore_original(packed, report.original.digest, file)
            with opened(file) as data:
                header = data.header()
            return integer_pixels(file), header, "original"
    if made is None:
        raise ObjectMissing(
            f"no picture can be drawn: the original {report.original.digest} is missing, and there is no rendition"
        )
    base, rendition = read_pair(store.held(made.base_digest), store.held(made.rendition_digest))
    rendering = Rendering.of(base, rendition, Catalogue(settings))
    return verified(rendering, rendition, draw=True), base.header.dataset(), "reconstruction"


def _shown(pixels: NDArray[np.uint16], header: Dataset) -> Image.Image:
    reference = Reference(pixels, header)
    image = Image.fromarray(grey(pixels, reference.window, reference.inverted))
    scale = _LONGER_SIDE / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.LANCZOS).convert("RGB")


def _sheet(image: Image.Image, made: RenditionReport | None, legend: list[str]) -> Image.Image:
    font = ImageFont.load_default(size=18)
    width = max(image.width, *(round(font.getlength(line)) + 2 * _LINE for line in legend))
    sheet = Image.new("RGB", (width, image.height + _LINE * (len(legend) + 1)), _GROUND)
    if made is not None and made.repair_counts is not None:
        scale = image.height / made.repair_counts.rows
        _outline(ImageDraw.Draw(image), made.repair_counts.repairs, CELL * scale, _REPAIR)
        _outline(ImageDraw.Draw(image), made.repair_counts.cells, CELL * scale, _PATCH)
        _dot(ImageDraw.Draw(image), made.repair_counts.points, scale)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(legend):
        top = image.height + _LINE // 2 + number * _LINE
        colour = next((one for word, one in _COLOURS.items() if line.startswith(word)), _TEXT)
        draw.text((_LINE, top), line, fill=colour, font=font)
    return sheet


_COLOURS = {"exact patches": _PATCH, "repairs": _REPAIR, "points": _POINT}


def _outline(
    draw: ImageDraw.ImageDraw, cells: NDArray[np.bool_] | None, side: float, colour: tuple[int, int, int]
) -> None:
    """Draw lines around the marked cells. ``side``: of a cell, in pixels of the picture."""
    if cells is None:
        return
    around = np.pad(cells, 1)
    for axis in (0, 1):
        for down, across in np.argwhere(np.diff(around, axis=axis)).tolist():
            # the edge below (axis 0) or right of (axis 1) the cell at (down, across) of ``around``
            row, column = (down, across - 1) if axis == 0 else (down - 1, across)
            ends = [(column, row), (column + 1, row) if axis == 0 else (column, row + 1)]
            draw.line([(x * side, y * side) for x, y in ends], fill=colour, width=2)


def _dot(draw: ImageDraw.ImageDraw, points: tuple[tuple[int, int], ...], scale: float) -> None:
    for row, column in points:
        x, y = (column + 0.5) * scale, (row + 0.5) * scale
        draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=_POINT)


def _legend(report: InstanceReport, made: RenditionReport | None, source: str) -> list[str]:
    lines = [f"{source} of {report.sop_instance_uid}"]
    if made is None:
        return [*lines, f"state {report.state}: held bit-exact, no rendition"]
    verdict = made.verdict
    lines.append(
        f"{made.point}, {made.upscaler}: {made.payload_bytes} bytes for {report.pixel_bytes}; "
        f"PSNR {verdict.psnr_db:.1f} dB, tile FSIM {verdict.fsim_mean:.3f} / {verdict.fsim_p5:.3f}"
    )
    if made.repair_counts is not None and made.parts is not None:
        counts, parts = made.repair_counts, made.parts
        share = f"{100 * counts.patched_share:.2f}% of the image"
        lines.append(f"exact patches: {counts.patched} of 16 x 16 pixels, {share}, {parts.patches} bytes")
        share = f"{100 * counts.repaired_share:.2f}% of the image"
        lines.append(f"repairs: {counts.repaired} of 16 x 16 pixels, {share}, {parts.repairs} bytes")
        lines.append(f"points: {made.repair_counts.point_count}, {made.parts.points} bytes")
    return lines
