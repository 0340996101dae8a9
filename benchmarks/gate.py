"""Seconds that the gate takes on a 13.6-megapixel image: the first survey of an original, the next, one after patches.

python -m benchmarks.gate [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from benchmarks.reconstruct import image
from node.config import Settings
from node.fidelity.gate import Reference, mends, resurvey, survey, tile_scores
from tests.samples import mammogram


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = timed(options.rounds)
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        Console().print(f"{name}: {value}", highlight=False)


def timed(rounds: int) -> dict[str, Any]:
    """Medians over the rounds; the first survey happens once."""
    pixels, bits = image()
    reference = Reference(pixels, mammogram(pixels, bits=bits))
    candidate = pixels.copy()
    candidate[1::2] = pixels[::2]
    found, first = _seconds(lambda: survey(reference, candidate))
    boxes = mends(found, Settings().thresholds)[:20]
    return {
        "megapixels": round(pixels.size / 1e6, 1),
        "tiles": len(found),
        "tiles_with_breast": int(found.breast.sum()),
        "first_survey_s": round(first, 2),
        "survey_s": _median(rounds, lambda: survey(reference, candidate)),
        "fsim_alone_s": _median(rounds, lambda: tile_scores(reference, candidate)),
        "resurvey_s": _median(rounds, lambda: resurvey(found, reference, candidate, boxes)),
        "resurveyed_tiles": len(found.touched(boxes)),
    }


def _median(rounds: int, work: Callable[[], Any]) -> float:
    return round(statistics.median(_seconds(work)[1] for _ in range(rounds)), 2)


def _seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    done = work()
    return done, time.perf_counter() - began


if __name__ == "__main__":
    main()
