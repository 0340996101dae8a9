"""Proves what ``latent-pacs instance show`` reports while the node runs, and when objects are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydicom import Dataset
from typer.testing import CliRunner, Result

from node.app import Node
from node.archive.instance_report import report_on
from node.cli.commands.instance import _identity, _trials
from node.cli.main import app
from node.config import load
from node.dimse.client import Receiver
from storage.errors import ConfigError, UnknownUid
from storage.formats.payload import decode_rendition
from storage.records import InstanceState, StoredInstance, StoredRendition, Tier, Trial
from tests.conftest import Archive, wait_for
from tests.support.annotations import cad_report, finding, scoord, selected_from
from tests.support.commands import run as command
from tests.support.samples import breast, mammogram
from tests.support.transfers import send

PATCH_COLOUR = (255, 170, 0)


@dataclass
class Shown:
    """A running node with one image that has two renditions, and one small image in state EXACT."""

    archive: Archive
    config: Path
    ds: Dataset
    small: Dataset
    former: StoredInstance
    held: StoredInstance


SCALES = {"scales": [1]}


def current(held: StoredInstance) -> StoredRendition:
    assert held.rendition is not None
    return held.rendition


def run(*arguments: str) -> Result:
    """Run the command in this process. Its errors are raised."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    config, received = folder / "config.yaml", folder / "received"
    received.mkdir()
    raw = {
        "node": {"host": "127.0.0.1", "port": 0},
        "storage": {"root": str(folder / "a"), "min_free": 0},
        "reconstruct": {"upscaler": "bicubic", "threads": 1},
        "codec": SCALES,
        "originals": {"coder": "none"},
    }
    config.write_text(yaml.safe_dump(raw))
    with Receiver(received) as receiver, Node(load(config)) as node:
        archive = Archive(node, receiver)
        ds, small = mammogram(), mammogram(breast(200, 200))
        uid = str(ds.SOPInstanceUID)
        send(archive, folder, ds, small)
        former = archive.settled(uid)
        archive.settled(small.SOPInstanceUID)
        point = scoord("POINT", [200, 300], selected_from(uid))
        send(archive, folder, cad_report(str(ds.StudyInstanceUID), [uid], finding("111099", point)))

        def again() -> StoredInstance | None:
            held = archive.settled(uid)
            return held if current(held) != current(former) else None

        yield Shown(archive, config, ds, small, former, wait_for(again))


@pytest.mark.slow
def test_json_has_all_fields(shown: Shown) -> None:
    uid, held = str(shown.ds.SOPInstanceUID), shown.held
    done = run("instance", "show", uid, "-c", str(shown.config), "--json")
    assert done.exit_code == 0, done.stderr
    life = json.loads(done.stdout)
    assert (life["sop_instance_uid"], life["state"], life["sent_by"]) == (uid, "verified", "MODALITY")
    assert life["sop_class"] == "Digital Mammography X-Ray Image Storage - For Presentation"
    original = life["original"]
    assert (original["condition"], original["form"], original["store"]) == ("held", "verbatim", "hot")
    assert (original["digest"], original["bytes"]) == (held.original_digest, held.original_bytes)
    assert Path(original["file"]).stat().st_size == original["bytes"]

    former, now = life["renditions"]
    assert (former["current"], now["current"]) == (False, True)
    assert former["derived_uid"] == current(shown.former).derived_uid
    assert now["derived_uid"] == current(held).derived_uid
    store = shown.archive.node.store
    made = decode_rendition(store.read(current(held).rendition_digest))
    assert now["parts"] == {
        "base_pixels": now["parts"]["base_pixels"],
        "noise": len(made.noise),
        "repairs": len(made.repairs),
        "points": len(made.points),
        "patches": len(made.patches),
    }
    for kind in ("base", "rendition"):
        assert store.held(now[f"{kind}_digest"]).stat().st_size == now[f"{kind}_bytes"]
    assert now["payload_bytes"] == now["base_bytes"] + now["rendition_bytes"]
    assert now["ratio"] == pytest.approx(held.pixel_bytes / now["payload_bytes"], abs=0.01)
    assert now["parts"]["base_pixels"] < now["base_bytes"]
    assert now["repair_counts"]["patched"] >= 4  # the region touches that many cells
    assert now["repair_counts"]["patched_share"] == now["repair_counts"]["patched"] / 360  # of 20 x 18 cells
    assert now["operating_point"] == former["operating_point"], "where the former one passed, so does the new one"
    assert now["tried"][-1]["point"] == now["point"]
    assert now["tried"][-1]["failures"] == []
    assert (now["verdict"]["gated"], now["verdict"]["failures"], now["withdrawn"]) == (True, [], "")
    assert now["steps"] is not None
    assert now["verified_at"].endswith("+00:00")


def test_every_issued_uid_leads_to_it(shown: Shown) -> None:
    former = current(shown.former).derived_uid
    index, store = shown.archive.node.index, shown.archive.node.store
    stores = {Tier.HOT: store}
    by_former, by_own = report_on(index, stores, former), report_on(index, stores, str(shown.ds.SOPInstanceUID))
    assert by_former.sop_instance_uid == by_own.sop_instance_uid
    assert by_former.rendition is not None
    assert by_own.rendition is not None
    assert (by_former.rendition.derived_uid, by_former.rendition.current) == (former, False)
    assert by_own.rendition.derived_uid == current(shown.held).derived_uid
    with pytest.raises(UnknownUid, match=r"1\.2\.3"):
        report_on(index, stores, "1.2.3")
    done = command("instance", "show", "1.2.3", "-c", str(shown.config))
    assert done.returncode == 2
    assert "no image is known by '1.2.3'" in " ".join(done.stderr.split())


def test_the_patient_is_shown_on_request_only(shown: Shown) -> None:
    uid = str(shown.ds.SOPInstanceUID)
    for form in ((), ("--json",)):
        done = run("instance", "show", uid, "-c", str(shown.config), *form)
        assert "Müller" not in done.stdout
        assert "P0001" not in done.stdout
        done = run("instance", "show", uid, "-c", str(shown.config), "--patient", *form)
        assert "ller^Anna" in done.stdout
        assert "P0001" in done.stdout


def test_text_has_the_reason_of_an_exact_image(shown: Shown) -> None:
    done = run("instance", "show", str(shown.small.SOPInstanceUID), "-c", str(shown.config))
    assert done.exit_code == 0, done.stderr
    assert "smaller than 256 pixels a side" in done.stdout
    assert "exact" in done.stdout
    done = run("instance", "show", str(shown.ds.SOPInstanceUID), "-c", str(shown.config))
    for word in ("former rendition", "current rendition", "chosen", "patches of 16 x 16 pixels", "specks_lost"):
        assert word in done.stdout, word


def test_the_trial_with_the_fewest_bytes_is_the_one_that_was_taken(shown: Shown) -> None:
    """Re-verification tries the baseline last, whichever upscaler takes fewer bytes."""
    made = report_on(shown.archive.node.index, {Tier.HOT: shown.archive.node.store}, str(shown.ds.SOPInstanceUID))
    assert made.rendition is not None
    tried = (
        Trial("x2 jpegxl d1", "bicubic", 50, (), 1.0, sample=True),
        Trial("x2 jpegxl d1", "mammo", 90, ("too coarse",), 1.0),
        Trial("x2 jpegxl d1", "mammo", 100, (), 1.0),
        Trial("x2 jpegxl d1", "bicubic", 120, (), 1.0),
    )
    results = list(_trials(replace(made.rendition, tried=tried)).columns[-1].cells)
    sample = "coarsest that passes on the sample"
    assert results == [sample, "too coarse", "chosen", "passed, but takes more bytes"]


def test_a_purged_original_has_no_store(shown: Shown) -> None:
    report = report_on(shown.archive.node.index, {Tier.HOT: shown.archive.node.store}, str(shown.ds.SOPInstanceUID))
    purged = replace(report.original, condition="purged", form="purged", bytes=2000)
    names, values = _identity(replace(report, original=purged), utc=True).columns
    assert dict(zip(names.cells, values.cells, strict=True))["original"] == "purged, 2.0 KB as received"


def outlined(picture: Path) -> int:
    """The number of pixels above the legend that have the colour of patches."""
    with Image.open(picture) as image:
        pixels = np.asarray(image)
    return int((pixels[:1200] == PATCH_COLOUR).all(axis=2).sum())


def test_the_picture(shown: Shown, tmp_path: Path) -> None:
    uid, former = str(shown.ds.SOPInstanceUID), current(shown.former).derived_uid
    for asked in (uid, former):
        picture = tmp_path / f"{asked}.png"
        done = run("instance", "show", asked, "-c", str(shown.config), "--picture", str(picture))
        assert done.exit_code == 0, done.stderr
        with Image.open(picture) as image:
            assert image.mode == "RGB"
            assert 1200 < image.height < 1400
    assert outlined(tmp_path / f"{uid}.png") > outlined(tmp_path / f"{former}.png")
    done = run("instance", "show", uid, "-c", str(shown.config), "--picture", str(tmp_path / "none" / "a.png"))
    assert isinstance(done.exception, ConfigError)
    assert "cannot be written" in str(done.exception)


@pytest.mark.slow
def test_without_its_objects(shown: Shown, tmp_path: Path) -> None:
    """The rows still have the figures. If the original is lost, the picture is drawn from the reconstruction."""
    index, store = shown.archive.node.index, shown.archive.node.store
    stores = {Tier.HOT: store}
    uid, made = str(shown.ds.SOPInstanceUID), current(shown.held)
    files = [store.path(digest) for digest in (shown.held.original_digest, made.rendition_digest)]
    aside = [file.rename(tmp_path / file.name) for file in files]
    try:
        life = report_on(index, stores, uid)
        assert life.original.condition == "lost"
        assert life.rendition is not None
        assert made.rendition_digest in life.rendition.unreadable
        assert life.rendition.parts is None
        assert life.rendition.verdict.passed
        assert run("instance", "show", uid, "-c", str(shown.config)).exit_code == 0
        aside[1].rename(files[1])
        done = run("instance", "show", uid, "-c", str(shown.config), "--picture", str(tmp_path / "p.png"))
        assert done.exit_code == 0, done.stderr
        assert outlined(tmp_path / "p.png") > 0
    finally:
        for place, file in zip(aside, files, strict=True):
            if place.exists():
                place.rename(file)
    assert report_on(index, stores, uid).state == InstanceState.VERIFIED
