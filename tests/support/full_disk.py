"""Starts a node on a full disk, and prints the results as JSON.

tests/journeys/archive/test_disk.py runs it in a process that may mount, with a folder to work in.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from storage.errors import StoreFull
from tests.conftest import Archive, settings_for
from tests.support.samples import breast, mammogram, write


def main(folder: Path, kept: str) -> None:
    disk = folder / "disk"
    for made in (disk, folder / "received"):
        made.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    with Receiver(folder / "received") as receiver:
        settings = settings_for(disk / "archive", receiver.port, archivist={"enabled": False})
        with Node(settings) as node:
            ds = mammogram(breast(300, 280))
            first = stored(node, write(ds, folder / "x.dcm"))
        if kept == "nothing":
            (disk / "archive" / "reserve").unlink()
        fill(disk / "filler")
        try:
            with Node(settings) as node:
                told = on_a_full_disk(node, receiver, str(ds.StudyInstanceUID), folder)
                (disk / "filler").unlink()
                told["with room again"] = stored(node, write(mammogram(breast(64, 60)), folder / "z.dcm"))
        except StoreFull as error:
            told = {"refused": str(error)}
        told["kept back again"] = (disk / "archive" / "reserve").exists()
    sys.stdout.write(json.dumps({"first": first, **told}))


def on_a_full_disk(node: Node, receiver: Receiver, study: str, folder: Path) -> dict[str, Any]:
    to, wanted = Archive(node, receiver).address, client.image_identifier(study)
    small = write(mammogram(breast(64, 64)), folder / "y.dcm")
    return {
        "stored": [stored(node, small) for _ in range(2)],
        "found": len(client.find(wanted, to, calling="EXACTVIEW")),
        "moved": client.move(wanted, to, calling="EXACTVIEW", destination="EXACTVIEW").Status,
        "received": len(receiver.received),
    }


def stored(node: Node, path: Path) -> int:
    statuses: list[int] = []
    to = Archive(node, None).address  # type: ignore[arg-type]
    client.store([path], to, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
    return statuses[0]


def fill(file: Path) -> None:
    """Use up all free room of the disk."""
    for size in (1 << 16, 1 << 12, 1):
        try:
            with file.open("ab", buffering=0) as out:
                while out.write(b"1" * size):
                    pass
        except OSError:
            continue


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
