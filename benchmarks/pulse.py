"""Sends C-ECHO requests at fixed times until its standard input ends, and prints how long each took.

It is a separate process, so that the load of benchmarks.load does not delay its clock. Each request has an association
of its own. A line of output has the seconds since the start, the milliseconds from the connection until the association
was accepted and until the response, and 1 for success or 0. A slow answer does not delay the next request.

    python -m benchmarks.pulse --port PORT [--every 0.5]
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from contextlib import suppress

from benchmarks.upper_layer import ACCEPTED, DATA, associate, echo, received


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
    accepted, answered, success = beat(port)
    print(f"{at:.1f} {accepted:.1f} {answered:.1f} {success:d}\n", end="", flush=True)


def beat(port: int) -> tuple[float, float, bool]:
    """Milliseconds until the association is accepted, and until the C-ECHO is answered; whether it succeeded.

    It waits at most 20 s for each answer.
    """
    began = accepted = time.perf_counter()
    success = False
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(associate())
        success = received(connection)[:1] == bytes((ACCEPTED,))
        accepted = time.perf_counter()
        connection.sendall(echo())
        success = success and received(connection)[:1] == bytes((DATA,))
    return (accepted - began) * 1000, (time.perf_counter() - began) * 1000, success


if __name__ == "__main__":
    main()
