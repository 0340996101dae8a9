"""Makes the golden files: a base of each version, a rendition, two packed originals.

``python -m tests.golden.make`` writes those that are missing, for a new format version under new names. The files that
are here stay as they are, since every release must read what any release before it wrote.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from storage import coders
from storage.coarseness import Coarseness
from storage.dicomfile import opened
from storage.originals import pack_original
from storage.packbits import encode_plane
from storage.payload import (
    Base,
    Rendition,
    Window,
    derived_uid,
    encode_base,
    encode_rendition,
    pack_mask,
    seed_of,
)
from storage.pixels import pixel_digest
from storage.records import Rung, RungOutcome, Verdict
from storage.resample import Operator
from tests.samples import breast, byte_planes, mammogram, rle_file, write

FOLDER = Path(__file__).parent
ROWS, COLUMNS = 300, 280
ORIGINAL_UID = "2.25.313131313131313131313131313131313131313"
WEIGHTS = hashlib.sha256(b"weights").hexdigest()


def golden_base() -> Base:
    """A base of synthetic pixels: x2, 16-bit PNG, with padding outside the breast and an element after the pixels."""
    return base_of(Rung(2, "png16", distance=0.0, effort=9, sample_bits=16))


def golden_base_with_a_map() -> Base:
    """The same image: x2, lossy AVIF, samples scaled by a map of 2 x 2 tiles."""
    steps = np.array([[4, -3], [-2, 11]], dtype=np.int8)
    return base_of(Rung(2, "avif", distance=0.5, effort=7, sample_bits=12), Coarseness(ROWS, COLUMNS, steps))


def golden_base_with_a_window() -> Base:
    """The same of which only 129 x 114 of 150 x 140 samples are coded; beyond them all are 0."""
    steps = np.array([[4, -3], [-2, 11]], dtype=np.int8)
    rung = Rung(2, "avif", distance=0.5, effort=7, sample_bits=12)
    return base_of(rung, Coarseness(ROWS, COLUMNS, steps), Window(11, 0, 129, 114, beyond=0))


def base_of(rung: Rung, coarseness: Coarseness | None = None, window: Window | None = None) -> Base:
    """The synthetic image at that rung."""
    pixels = breast(ROWS, COLUMNS, seed=1)
    padded = pixels == 0
    exponent = rung.sample_bits - 12
    ideal = Operator(ROWS, COLUMNS, rung.scale).down(pixels)
    scaled = ideal * 2.0**exponent
    if coarseness is not None:
        scaled = scaled * coarseness.scaling(rung.scale)
    samples = np.clip(np.rint(scaled), 0, coders.top_sample(rung.coder)).astype(np.uint16)
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
        rung=rung,
        rows=ROWS,
        columns=COLUMNS,
        bits_stored=12,
        minimum=int(pixels[~padded].min()),
        maximum=int(pixels.max()),
        padding=(0, 0),
        padding_value=0,
        exponent=exponent,
        quantisation_rms=0.0,
        original_digest=original_digest,
        pixel_digest=pixel_digest(pixels),
        pixel_vr=pixel_vr,
        header=header,
        coded=coders.encode(samples if window is None else samples[window.part], rung),
        padding_mask=pack_mask(padded),
        coarseness=coarseness,
        window=window,
    )
    return replace(base, quantisation_rms=float(np.sqrt(np.mean((base.samples() - ideal).astype(np.float64) ** 2))))


def golden_rendition(base: bytes) -> Rendition:
    """A rendition of that base with something in every field; the figures are made up."""
    digest = hashlib.sha256(base).hexdigest()
    missed = Verdict(31.5, 0.91, 0.87, 4, {"rmse": 40.25}, ("tile FSIM mean 0.91 is below 0.93",))
    passed = Verdict(38.25, 0.96875, 0.9375, 4, {"rmse": 12.5, "window_width": 4096.0})
    seed = seed_of(digest)
    return Rendition(
        base_digest=digest,
        original_uid=ORIGINAL_UID,
        derived_uid=derived_uid(ORIGINAL_UID, digest, "sd_x2", WEIGHTS, 10, seed),
        upscaler="sd_x2",
        method="ISO_15444_1",
        generative=True,
        weights_digest=WEIGHTS,
        numerics={"device": "cpu", "dtype": "float32", "torch": "2.0"},
        steps=10,
        seed=seed,
        output_digest=hashlib.sha256(b"output").hexdigest(),
        verdict=passed,
        tried=(RungOutcome("x4 png16", 9_000, missed, 1.5), RungOutcome("x2 png16", len(base), passed, 2.25)),
        guide=b"guide of each tile",
        points=b"points",
        patches=b"patches",
        extra={"note": "golden"},
    )


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
    """All of them by name."""
    base = encode_base(golden_base())
    return {
        **{f"original-{name}-v1.lpacs": packed for name, packed in golden_originals().items()},
        "base-v1.lpacs": base,
        "base-v2.lpacs": encode_base(golden_base_with_a_map()),
        "base-v3.lpacs": encode_base(golden_base_with_a_window()),
        "rendition-v1.lpacs": encode_rendition(golden_rendition(base)),
    }


if __name__ == "__main__":
    for name, data in golden_files().items():
        if not (FOLDER / name).exists():
            (FOLDER / name).write_bytes(data)
