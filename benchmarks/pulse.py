"""Sends C-ECHO requests at fixed times until its standard input ends, and prints how long each took.

It is a process of its own, so that the load that benchmarks.load makes does not delay its clock. Each request has an
association of its own, and its latency lasts from the connection to the response. A line of output is seconds since the
start, latency in milliseconds, and 1 for success or 0. A slow answer does not delay the next request.

    python -m benchmarks.pulse --port PORT [--every 0.5]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time

from benchmarks.upper_layer import ACCEPTED, DATA, ask, associate, echo, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--every", type=float, default=0.5)
    options = parser.parse_args()
    over = threading.Event()
    threading.Thread(target=wait_for_the_end, args=(over,), daemon=True).start()
    began = time.monotonic()
    beats = 0
    while not over.wait(began + beats * options.every - time.monotonic()):
        threading.Thread(target=report, args=(options.port, beats * options.every)).start()
        beats += 1


def wait_for_the_end(over: threading.Event) -> None:
    sys.stdin.read()
    over.set()


def report(port: int, at: float) -> None:
    """Send one C-ECHO and print its line. ``at``: seconds since the start."""
    latency, answered = beat(port)
    print(f"{at:.1f} {latency:.1f} {answered:d}\n", end="", flush=True)


def beat(port: int) -> tuple[float, bool]:
    """The latency of one C-ECHO, in milliseconds, and whether it succeeded. It waits at most 20 s for each answer."""
    began = time.perf_counter()
    try:
        answered = kinds(ask(port, associate(), echo())) == [ACCEPTED, DATA]
    except OSError:
        answered = False
    return (time.perf_counter() - began) * 1000, answered


if __name__ == "__main__":
    main()
