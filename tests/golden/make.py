"""Makes the golden files: two bases, a rendition, two packed originals.

``python -m tests.golden.make`` writes files that are missing. Existing files are never changed, because every release
must read what any earlier release wrote.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from node.codec.fingerprint import fingerprint_of
from node.codec.noise import LEVELS, SPECTRUM, NoiseModel, encode_noise
from node.codec.patches import cells_under, cut, encode_patches
from node.codec.points import Point, Points, encode_points
from node.codec.residuals import CodedResiduals, encode_residuals
from storage.dicom.dicomfile import opened
from storage.dicom.packbits import encode_plane
from storage.dicom.pixels import pixel_digest
from storage.formats import coders
from storage.formats.packed_original import pack_original
from storage.formats.padding import pack_padding
from storage.formats.payload import (
    CURVE_KNOTS,
    Base,
    CodedRegion,
    Rendition,
    encode_base,
    encode_rendition,
    mapped,
    seed_of,
    with_derived_uid,
)
from storage.formats.resample import Operator
from storage.records import OperatingPoint, Verdict
from tests.support.samples import breast, byte_planes, mammogram, rle_file, write

FOLDER = Path(__file__).parent
ROWS, COLUMNS = 300, 280
ORIGINAL_UID = "2.25.313131313131313131313131313131313131313"
WEIGHTS = hashlib.sha256(b"weights").hexdigest()


def golden_base() -> Base:
    """A base of synthetic pixels: x2, 16-bit PNG, with padding outside the breast and an element after the pixels."""
    return base_of(OperatingPoint(2, "png16", distance=0.0, effort=9), offset=0.0, gain=16.0)


def golden_base_of_a_region() -> Base:
    """The same image: x2, lossy JPEG XL of 129 x 114 of its 150 x 140 samples, inverted and companded. All other
    samples are 0."""
    point = OperatingPoint(2, "jpegxl", distance=0.5, effort=7, companded=True)
    curve = np.rint(65535 * np.linspace(0, 1, CURVE_KNOTS) ** 0.8).astype("<u2").tobytes()
    return base_of(point, offset=2973.0, gain=-20.0, region=CodedRegion(11, 0, 129, 114, beyond=0), curve=curve)


def base_of(
    point: OperatingPoint, offset: float, gain: float, region: CodedRegion | None = None, curve: bytes = b""
) -> Base:
    """The synthetic image at that operating point."""
    pixels = breast(ROWS, COLUMNS, seed=1)
    padded = pixels == 0
    ideal = Operator(ROWS, COLUMNS, point.scale).down(pixels)
    scaled = np.clip((ideal - np.float32(offset)) * np.float32(gain), 0, 65535)
    samples = np.rint(mapped(scaled, curve) if curve else scaled).astype(np.uint16)
    ds = mammogram(
        pixels,
        SOPInstanceUID=ORIGINAL_UID,
        StudyInstanceUID="2.25.1",
        SeriesInstanceUID="2.25.2",
        PixelPaddingValue=0,
    )
    ds.add_new(0xFFFCFFFC, "OB", b"golden\0\0")
    with tempfile.TemporaryDirectory() as folder:
        path = write(ds, Path(folder) / "golden.dcm")
        original_digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with opened(path) as file:
            header, pixel_vr = file.header_bytes(), file.layout.pixel_vr
    base = Base(
        point=point,
        rows=ROWS,
        columns=COLUMNS,
        bits_stored=12,
        minimum=int(pixels[~padded].min()),
        maximum=int(pixels.max()),
        padding=(0, 0),
        offset=offset,
        gain=gain,
        quantisation_rms=0.0,
        original_digest=original_digest,
        pixel_digest=pixel_digest(pixels),
        pixel_vr=pixel_vr,
        header=header,
        coded=coders.encode(samples if region is None else samples[region.part], point),
        padding_bytes=pack_padding(pixels, padded),
        region=region,
        curve=curve,
    )
    return replace(base, quantisation_rms=float(np.sqrt(np.mean((base.samples() - ideal).astype(np.float64) ** 2))))


def golden_rendition(base: bytes) -> Rendition:
    """A rendition of that base with something in every field; figures and side information are made up."""
    digest = hashlib.sha256(base).hexdigest()
    passed = Verdict(38.25, 0.96875, 0.9375, 4, {"lines_1.2": 3.75, "window_width": 4096.0})
    seed = seed_of(digest)
    parts = golden_parts()
    made = Rendition(
        base_digest=digest,
        original_uid=ORIGINAL_UID,
        derived_uid="",
        upscaler="sd_x2",
        method="LDM_UPSCALE_1",
        generative=True,
        weights_digest=WEIGHTS,
        numerics={"device": "cpu", "dtype": "float32", "torch": "2.0"},
        steps=10,
        seed=seed,
        output_digest=hashlib.sha256(b"output").hexdigest(),
        structure_digest=hashlib.sha256(b"structure").hexdigest(),
        verdict=passed,
        **parts,
        fingerprint=fingerprint_of(np.full((ROWS, COLUMNS), 1000, dtype=np.uint16)),
        measured_uid="2.25.1",
        extra={"minimum": [704, 705], "maximum": [2973, 2970]},
    )
    return with_derived_uid(made)


def golden_parts() -> dict[str, bytes]:
    """A noise model, four repaired cells, two points and two patches of the synthetic image."""
    place = np.full((5, 5), 192, dtype=np.uint8)
    place[0, 0] = 0
    curve = np.linspace(140, 160, LEVELS).astype(np.uint8)
    spectrum = np.full(SPECTRUM, 255, dtype=np.uint8)
    spectrum[:, 20:] = 200
    quiet, cells = np.zeros((19, 18), dtype=bool), np.zeros((19, 18), dtype=bool)
    quiet[10, 12:14] = cells[4:6, 2:4] = True
    noise = NoiseModel(ROWS, COLUMNS, 704.0, 2973.0, curve, place, spectrum, gain=1.25, quiet=quiet)
    residual = np.zeros((ROWS, COLUMNS), dtype=np.float32)
    residual[70:80, 40:50] = 300.0
    points = Points(ROWS, COLUMNS, (Point(150, 60, 1, 50), Point(150, 90, 3, -20)))
    return {
        "noise": encode_noise(noise),
        "repairs": encode_residuals(CodedResiduals.of(residual, cells, 8.0)),
        "points": encode_points(points),
        "patches": encode_patches(cut(breast(ROWS, COLUMNS, seed=1), cells_under([(190, 30, 10, 10)], ROWS, COLUMNS))),
    }


def golden_originals() -> dict[str, bytes]:
    """Packed originals by name: signed native pixels with gaps between their values, and RLE Lossless."""
    uids = {"SOPInstanceUID": ORIGINAL_UID, "StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.2"}
    native = mammogram(breast(ROWS, COLUMNS, seed=1), PixelRepresentation=1, **uids)
    native.PixelData = (breast(ROWS, COLUMNS, seed=1).astype(np.int16) * 7 - 9000).astype("<i2").tobytes()
    native.add_new(0xFFFCFFFC, "OB", b"golden\0\0")
    rle = mammogram(breast(ROWS, COLUMNS, seed=2), **uids)
    segments = [encode_plane(plane) for plane in byte_planes(breast(ROWS, COLUMNS, seed=2))]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "native": write(native, Path(folder) / "native.dcm"),
            "rle": rle_file(rle, Path(folder) / "rle.dcm", segments),
        }
        return {
            name: pack_original(path, "jpegxl", hashlib.sha256(path.read_bytes()).hexdigest())
            for name, path in files.items()
        }


def golden_files() -> dict[str, bytes]:
    """All golden files by name."""
    base = encode_base(golden_base())
    return {
        **{f"original-{name}-v1.lpacs": packed for name, packed in golden_originals().items()},
        "base-v1.lpacs": base,
        "base-region-v1.lpacs": encode_base(golden_base_of_a_region()),
        "rendition-v1.lpacs": encode_rendition(golden_rendition(base)),
    }


def golden_archive() -> bytes:
    """A whole archive, its node stopped, as a ZIP file; ``uids.json`` says which image is which."""
    from node.app import Node
    from tests.conftest import settings_for
    from tests.support.everything import fill

    with tempfile.TemporaryDirectory() as name:
        folder, packed = Path(name), io.BytesIO()
        with Node(settings_for(folder / "archive", originals={"coder": "jpegls"})) as node:
            uids = fill(node, folder)
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("uids.json", json.dumps(uids))
            for part in ("index.sqlite", "journal", "objects"):
                at = folder / "archive" / part
                for file in [at] if at.is_file() else sorted(at.rglob("*")):
                    if file.is_file() and "lock" not in file.name:
                        out.write(file, file.relative_to(folder / "archive"))
        return packed.getvalue()


if __name__ == "__main__":
    if not (FOLDER / "archive-v1.zip").exists():
        (FOLDER / "archive-v1.zip").write_bytes(golden_archive())
    for name, data in golden_files().items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
