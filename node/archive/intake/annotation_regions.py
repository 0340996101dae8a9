"""Regions that annotations of a study mark, as boxes of pixels: mammography CAD reports and presentation states.

People look at marked regions again, so these are stored exactly. A box is the bounding box of a drawn shape, with a
margin around it. This module neither reads pixels nor uses the archive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydicom import Dataset
from pydicom.tag import BaseTag

from storage.dicom.elements import codecs_of, readable, readable_items

MAMMOGRAPHY_CAD_SR = "1.2.840.10008.5.1.4.1.1.88.50"
GRAYSCALE_PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
ANNOTATING = (MAMMOGRAPHY_CAD_SR, GRAYSCALE_PRESENTATION_STATE)
"""SOP classes of annotations that mark regions of images."""

MARGIN = 16
"""Pixels added around a shape. Chosen, not measured: outlines are drawn by eye, and the border of a lesion is judged
by its surroundings."""

_NOT_FINDINGS = {"111100", "111101"}
"""Codes of breast geometry and image quality (PS3.16 CID 6014), whose outlines are not of lesions."""

Point = tuple[float, float]
"""Column and row in pixels; the image's top left corner is (0, 0)."""


Sources = Mapping[str, tuple[bool, bool]]
"""Images of which an image was made, by UID, with whether the columns, and whether the rows, run the other way."""

_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
_SOURCES = BaseTag(0x00082112)
_OPPOSITES = {"A": "P", "P": "A", "H": "F", "F": "H", "L": "R", "R": "L"}


class Box(NamedTuple):
    """A rectangle of pixels, 0-based; it may extend beyond the image."""

    row: int
    column: int
    height: int
    width: int


def clipped(box: Box, rows: int, columns: int) -> Box | None:
    """The part of a box that lies in an image of that size; None if there is none."""
    top, left = max(box.row, 0), max(box.column, 0)
    bottom, right = min(box.row + box.height, rows), min(box.column + box.width, columns)
    return Box(top, left, bottom - top, right - left) if top < bottom and left < right else None


def mirrored(box: Box, rows: int, columns: int, across: bool, down: bool) -> Box:
    """The box at the same place in an image of that size whose columns, or rows, run the other way."""
    column = columns - box.column - box.width if across else box.column
    return Box(rows - box.row - box.height if down else box.row, column, box.height, box.width)


def sources_of(header: Dataset) -> Sources:
    """The mammograms for processing of which an image was made. CAD reports often name these (PS3.3 C.7.6.1.1.4).

    Those whose pixels are at other places are left out: a source with Spatial Locations Preserved NO, or turned by 90
    degrees.
    """
    found = {}
    own = _orientation(header)
    for item in readable_items(header, _SOURCES, codecs_of(header)):
        preserved = readable(item, "SpatialLocationsPreserved")
        theirs = _orientation(item) if preserved == "REORIENTED_ONLY" else own
        aligned = all(their in (one, _OPPOSITES.get(one)) for one, their in zip(own, theirs, strict=True))
        if readable(item, "ReferencedSOPClassUID") == _FOR_PROCESSING and preserved != "NO" and aligned:
            found[str(readable(item, "ReferencedSOPInstanceUID"))] = (own[0] != theirs[0], own[1] != theirs[1])
    return found


def _orientation(dataset: Dataset) -> tuple[str, str]:
    """The main direction of the rows and of the columns (PS3.3 C.7.6.1.1.1); empty ones if they are not stated."""
    values = readable(dataset, "PatientOrientation")
    row, column = values if _is_many(values) and len(values) == 2 else ("", "")
    return str(row)[:1], str(column)[:1]


def regions_of(dataset: Dataset) -> dict[str, list[Box]]:
    """Boxes by the SOP Instance UID of their image; empty for objects of other SOP classes.

    Shapes that cannot be placed (other units, no image, values that are not numbers) are left out.
    """
    sop_class = str(dataset.get("SOPClassUID", ""))
    if sop_class == MAMMOGRAPHY_CAD_SR:
        shapes = _shapes_of_report(dataset)
    elif sop_class == GRAYSCALE_PRESENTATION_STATE:
        shapes = _shapes_of_presentation(dataset)
    else:
        return {}
    found: dict[str, list[Box]] = {}
    for uid, points in shapes:
        box = _box_around(points)
        if box is not None and box not in found.setdefault(uid, []):
            found[uid].append(box)
    return found


def _box_around(points: list[Point]) -> Box | None:
    if not points or not all(math.isfinite(value) and abs(value) < 1e6 for point in points for value in point):
        return None
    across, down = [point[0] for point in points], [point[1] for point in points]
    left, top = math.floor(min(across)) - MARGIN, math.floor(min(down)) - MARGIN
    return Box(top, left, math.ceil(max(down)) + MARGIN - top, math.ceil(max(across)) + MARGIN - left)


def _extremes(shape: str, points: list[Point]) -> list[Point]:
    """Points whose bounding box is that of a shape (PS3.3 C.18.6.1.2 and C.10.5.1.2)."""
    if shape == "CIRCLE" and len(points) == 2:  # its centre, and a point on it
        (x, y), radius = points[0], math.dist(*points)
        return [(x - radius, y - radius), (x + radius, y + radius)]
    if shape == "ELLIPSE" and len(points) == 4:  # the ends of the major axis, then of the minor
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = points
        x, y = (ax + bx) / 2, (ay + by) / 2
        wide, high = math.hypot(bx - ax, dx - cx) / 2, math.hypot(by - ay, dy - cy) / 2
        return [(x - wide, y - high), (x + wide, y + high)]
    return points


def _pairs(values: Any) -> list[Point]:
    """Graphic Data as points; an odd last value is dropped."""
    try:
        numbers = [float(value) for value in (values if _is_many(values) else [values])]
    except (TypeError, ValueError):
        return []
    return list(zip(numbers[::2], numbers[1::2], strict=False))


def _is_many(values: Any) -> bool:
    return hasattr(values, "__iter__") and not isinstance(values, str)


def _referenced(item: Dataset, keyword: str) -> list[str]:
    """The UIDs of a sequence of references; empty if it is absent."""
    return [str(one.ReferencedSOPInstanceUID) for one in item.get(keyword) or [] if "ReferencedSOPInstanceUID" in one]


# --- mammography CAD SR (PS3.16 TID 4000): SCOORD items, each selected from an image -------------------------------


def _shapes_of_report(dataset: Dataset) -> Iterator[tuple[str, list[Point]]]:
    items = dict(_content(dataset, (1,)))
    skipped: list[tuple[int, ...]] = []
    for place, item in items.items():
        if _value_code(item) in _NOT_FINDINGS:
            skipped.append(place)
        if item.get("ValueType") != "SCOORD" or any(place[: len(above)] == above for above in skipped):
            continue
        points = _extremes(str(item.get("GraphicType", "")), _pairs(item.get("GraphicData", [])))
        for child in item.get("ContentSequence") or []:
            for uid in _images(child, items):
                yield uid, points


def _content(item: Dataset, place: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Dataset]]:
    """Each content item with its identifier: its number among its siblings, from 1, after its parent's (C.17.3.2.2)."""
    yield place, item
    for number, child in enumerate(item.get("ContentSequence") or [], start=1):
        yield from _content(child, (*place, number))


def _images(item: Dataset, items: dict[tuple[int, ...], Dataset]) -> list[str]:
    """The image of a coordinate's child item, by value or by reference to an entry of the image library."""
    referenced = item.get("ReferencedContentItemIdentifier")
    if referenced is not None:
        place = tuple(int(value) for value in (referenced if _is_many(referenced) else [referenced]))
        item = items.get(place, Dataset())
    return _referenced(item, "ReferencedSOPSequence") if item.get("ValueType") == "IMAGE" else []


def _value_code(item: Dataset) -> str:
    codes = item.get("ConceptCodeSequence") or []
    return str(codes[0].get("CodeValue", "")) if codes else ""


# --- GSPS (PS3.3 A.33.1): graphics, in pixels of the image or in fractions of what is displayed of it -----------------


def _shapes_of_presentation(dataset: Dataset) -> Iterator[tuple[str, list[Point]]]:
    series = dataset.get("ReferencedSeriesSequence") or []
    every = [uid for one in series for uid in _referenced(one, "ReferencedImageSequence")]
    areas = list(dataset.get("DisplayedAreaSelectionSequence") or [])
    rotated = dataset.get("ImageRotation") in (90, 270)
    for annotation in dataset.get("GraphicAnnotationSequence") or []:
        for uid in _referenced(annotation, "ReferencedImageSequence") or every:
            area = next((one for one in areas if uid in (_referenced(one, "ReferencedImageSequence") or [uid])), None)
            for units, points in _drawn(annotation):
                yield uid, _placed(points, units, area, rotated)


def _drawn(annotation: Dataset) -> Iterator[tuple[str, list[Point]]]:
    """Shapes, and the anchor points of texts, each with its units."""
    for item in annotation.get("GraphicObjectSequence") or []:
        points = _extremes(str(item.get("GraphicType", "")), _pairs(item.get("GraphicData", [])))
        yield str(item.get("GraphicAnnotationUnits", "")), points
    for item in annotation.get("TextObjectSequence") or []:
        if "AnchorPoint" in item:
            yield str(item.get("AnchorPointAnnotationUnits", "")), _pairs(item.AnchorPoint)


def _placed(points: list[Point], units: str, area: Dataset | None, rotated: bool) -> list[Point]:
    """Points in pixels of the image; none if they cannot be placed."""
    if units == "PIXEL":
        return points
    if units != "DISPLAY" or area is None:
        return []
    corners = [_pairs(area.get(f"DisplayedArea{corner}HandCorner", [])) for corner in ("TopLeft", "BottomRight")]
    if not all(len(corner) == 1 for corner in corners):
        return []
    (x, right), (y, bottom) = (_edges(*ends) for ends in zip(*(corner[0] for corner in corners), strict=True))
    if rotated:  # the corners are those of the rotated image, whose width is along the image's rows
        points = [(v, u) for u, v in points]
    return [(x + u * (right - x), y + v * (bottom - y)) for u, v in points]


def _edges(first: float, last: float) -> Point:
    """Outer edges of a range of pixels, given by its first and last pixel, 1-based; reversed in a flipped image."""
    return (first - 1, last) if first <= last else (first, last - 1)
