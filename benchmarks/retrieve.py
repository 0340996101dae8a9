"""Times C-MOVE of full-field images from this archive and from Orthanc, in turn, to a receiver that discards them.

Both store the same images. This archive sends them as ``exact`` to a peer that receives originals, which are packed as
by default, and as ``cached`` to a peer that receives reconstructions from the rendered cache. Each ratio is Orthanc's
time over this archive's. In ``exact_first`` every original is unpacked for the first time, and in
``reconstructed_first`` every reconstruction is computed. ``passed_first`` sends to a peer with ``transfer_syntaxes:
[jpegls]``, which receives the packed codestreams unchanged, whereas Orthanc sends uncompressed images. It is left out
with ``--data``, since the values of real images have gaps, and such images are unpacked. ``reconstruct_s`` is the time
of one reconstruction of 13.6 megapixels alone (benchmarks.reconstruct).

    python -m benchmarks.retrieve [--images 30] [--rounds 3] [--coder jpegls] [--originals] [--json]
                                  [--data FOLDER --only NAME]

``--originals`` omits reconstructions, which take minutes to encode. The images are then For Processing. The pixels are
noise everywhere, the slowest content for a coder, or with ``--data`` those of the first mammogram found there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks import coded, reconstruct
from benchmarks.ingest import Batch, free_port, start_orthanc, start_ours, wait_until_listening
from node.archive.rendered_cache import forget
from storage.index import Index

RECEIVER = "VIEWER"
FOR_PROCESSING = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1", "PresentationIntentType": "FOR PROCESSING"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--coder", default="jpegls", help="coder of packed originals (originals.coder)")
    parser.add_argument("--originals", action="store_true", help="measure originals only")
    parser.add_argument("--data", type=Path, help="a folder of mammograms, the first of which the images show")
    parser.add_argument("--only", default="", help="text in the name of that mammogram")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    image = next(coded.images(options.data, only=options.only), None) if options.data else None
    if options.data and image is None:
        sys.exit(f"no mammogram with {options.only!r} in its name in {options.data}")
    for tool in ("storescu", "movescu", "Orthanc"):
        if not shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin"):
            sys.exit(f"{tool} is not installed (Debian: dcmtk, orthanc)")
    console = Console(stderr=True, quiet=options.json)
    with tempfile.TemporaryDirectory(prefix="latent-pacs-bench-") as folder:
        report = compare(
            *(Path(folder), options.images, options.rounds, console),
            coder=options.coder,
            reconstructed=not options.originals,
            pixels=image.picture.pixels if image else None,
        )
    report["pixels"] = image.name if image else "noise"
    if not options.originals:
        report["reconstruct_s"] = reconstruct.compare(3)["reconstruct_s"]
    if options.json:
        print(json.dumps(report, indent=2))
        return
    table = Table(
        *("", "seconds (median)", "MB/s", "Orthanc over this archive"),
        title=f"C-MOVE of {options.images} images of {report['megabytes']:.0f} MB in all, pixels: {report['pixels']}",
    )
    for name in ("exact", "cached", "orthanc", "exact_first", "passed_first", "reconstructed_first"):
        if f"{name}_s" in report:
            seconds, ratio = report[f"{name}_s"], report.get(f"{name}_ratio", "")
            table.add_row(name.replace("_", " "), f"{seconds:.2f}", f"{report['megabytes'] / seconds:.0f}", str(ratio))
    Console().print(table)
    if not options.originals:
        Console().print(f"reconstructing one: {report['reconstruct_s']:.2f} s")


def compare(
    folder: Path,
    images: int,
    rounds: int,
    console: Console,
    *,
    coder: str = "jpegls",
    reconstructed: bool = True,
    pixels: NDArray[np.uint16] | None = None,
) -> dict[str, Any]:
    """Fill both archives, wait until this one has encoded all images, and move the study from each in turn."""
    batch = Batch(folder / "files", images, pixels=pixels, **({} if reconstructed else FOR_PROCESSING))
    target, ours, theirs = free_port(), free_port(), free_port()
    archive = folder / "ours" / "archive"
    kinds = {"exact": "EXACT"} | ({"cached": "RECONSTRUCTED"} if reconstructed else {})
    with (
        receiving(target),
        running_ours(folder / "ours", ours, target, coder),
        running_orthanc(folder, theirs, target),
    ):
        batch.send(theirs)
        batch.send(ours)
        began = time.monotonic()
        with console.status("our archive comes to rest"):
            wait_for_rest(archive, images)
        console.print(f"{images} images measured and packed in {time.monotonic() - began:.0f} s")
        first = ["passed_first", "exact_first"] if coder == "jpegls" and pixels is None else ["exact_first"]
        times: dict[str, list[float]] = {name: [] for name in ("orthanc", *first, *kinds)}
        if reconstructed:
            times["reconstructed_first"] = [move(batch, ours, "RECONSTRUCTED", images)]
        move(batch, theirs, RECEIVER, images)  # warm up
        for _ in range(rounds):
            times["orthanc"].append(move(batch, theirs, RECEIVER, images))
            forget_restored(archive, images)
            if "passed_first" in first:
                times["passed_first"].append(move(batch, ours, "PASSED", images))
                if not reconstructed and any((archive / "rendered").glob("*.dcm")):
                    sys.exit("originals were unpacked that should have been passed through")
            times["exact_first"].append(move(batch, ours, "EXACT", images))
            for name, peer in kinds.items():
                times[name].append(move(batch, ours, peer, images))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "images": images,
        "coder": coder,
        "megabytes": round(batch.megabytes, 1),
        **{f"{name}_s": round(value, 3) for name, value in medians.items()},
        **{f"{name}_ratio": round(medians["orthanc"] / medians[name], 2) for name in (*kinds, *first)},
    }


def forget_restored(archive: Path, images: int) -> None:
    """Evict the unpacked originals from the cache, as happens when it is full."""
    index = Index.open(f"sqlite:///{archive / 'index.sqlite'}")
    try:
        digests = [one.original_digest for one in index.by_keys(list(range(1, images + 1)))]
    finally:
        index.close()
    forget(archive / "rendered", digests)


def move(batch: Batch, port: int, destination: str, images: int) -> float:
    """Seconds for movescu to move the study. Exits if an image is missing."""
    command = ["movescu", "-d", "-S", "-aet", RECEIVER, "-aem", destination, "-aec", "ANY", "127.0.0.1", str(port)]
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={batch.study}"]
    began = time.monotonic()
    done = subprocess.run([*command, *keys], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    said = done.stdout + done.stderr
    if done.returncode != 0 or re.findall(r"Completed Suboperations +: (\d+)", said)[-1:] != [str(images)]:
        sys.exit(f"movescu to {destination} failed: {said[-2000:]}")
    return seconds


@contextmanager
def receiving(port: int) -> Iterator[None]:
    """A receiver that discards images."""
    with running([sys.executable, "-m", "benchmarks.sink", str(port)], port):
        yield


@contextmanager
def running_ours(folder: Path, port: int, target: int, coder: str) -> Iterator[None]:
    """This archive with profile ``paper``, which encodes every image at one operating point."""
    at = {"host": "127.0.0.1", "port": target}
    peers = [
        {"ae_title": "MODALITY", "allow": ["store"]},
        {"ae_title": RECEIVER, "allow": ["move"]},
        {"ae_title": "EXACT", "rendition": "original", **at},
        {"ae_title": "PASSED", "rendition": "original", "transfer_syntaxes": ["jpegls"], **at},
        {"ae_title": "RECONSTRUCTED", "rendition": "reconstructed", **at},
    ]
    folder.mkdir()
    process = start_ours(
        *(folder, port),
        archivist=True,
        peers=peers,
        codec={"profile": "paper"},
        reconstruct={"upscaler": "bicubic"},
        originals={"coder": coder},
    )
    with ending(process, port):
        yield


@contextmanager
def running_orthanc(folder: Path, port: int, target: int) -> Iterator[None]:
    modality = {"AET": RECEIVER, "Host": "127.0.0.1", "Port": target, "AllowMove": True}
    (folder / "orthanc").mkdir()
    process = start_orthanc(folder / "orthanc", port, DicomModalities={"viewer": modality})
    with ending(process, port):
        yield


@contextmanager
def running(command: list[str], port: int) -> Iterator[None]:
    with ending(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), port):
        yield


@contextmanager
def ending(process: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    """Wait until a server listens. Terminate it after the block."""
    try:
        wait_until_listening(process, port)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for_rest(root: Path, images: int) -> None:
    """Wait until every image is encoded, or exact with ``--originals``, and every original is packed."""
    index = Index.open(f"sqlite:///{root / 'index.sqlite'}")
    try:
        while True:
            counts, originals = index.counts(), index.originals.totals()
            if sum(counts.by_state.values()) == originals.packed == images and not counts.backlog:
                break
            time.sleep(1)
    finally:
        index.close()


if __name__ == "__main__":
    main()
