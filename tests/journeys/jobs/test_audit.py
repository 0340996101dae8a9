"""Proves that the fidelity audit raises no alarm on a clean archive, and finds and withdraws what was tampered with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset, dcmread
from sqlalchemy import insert, select, update

from node.app import Node, make_audit
from node.archive.encode.fidelity_check import FidelityOutcome
from node.codec.points import Point, Points, encode_points
from node.codec.rendering import Rendering
from node.config import ReconstructSettings, Settings
from node.dimse import client
from node.dimse.client import Receiver
from node.jobs.audit_job import AUDIT, AuditPlan
from node.jobs.job import Job
from node.jobs.runner import Runner
from node.upscalers.catalogue import Catalogue
from node.workers.pool import WorkerPool
from storage.dicom.pixels import pixel_digest
from storage.formats.payload import decode_base, decode_rendition, encode_rendition, with_derived_uid
from storage.index.connection import writing
from storage.index.job_runs import Cause, JobRows, RunState
from storage.index.model_files import ModelRows
from storage.index.report_rows import NewReport, StoredReport
from storage.index.tables import instance, rendition
from storage.records import HoldKind, InstanceState, StoredInstance, StoredRendition
from tests.conftest import Archive, settings_for
from tests.support.chromium import open_page
from tests.support.commands import run as command
from tests.support.job_runs import reverified
from tests.support.samples import breast, mammogram
from tests.support.transfers import moved, send_and_settle

SCALES = {"scales": [1]}


IMAGES = (
    mammogram(breast(640, 512, seed=0)),
    mammogram(breast(640, 512, seed=1), ManufacturerModelName="Other"),
    mammogram(breast(640, 512, seed=2), InstitutionName="West"),
)
FIRST, SECOND, THIRD = IMAGES
CATALOGUE = Catalogue(ReconstructSettings(upscaler="bicubic"))


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage root of a node that has verified three images."""
    folder = tmp_path_factory.mktemp("verified")
    with Receiver(folder) as receiver, Node(node_settings(folder, receiver)) as node:
        held = send_and_settle(Archive(node, receiver), folder, *IMAGES)
        assert {one.state for one in held} == {InstanceState.VERIFIED}
    return folder / "archive"


@pytest.fixture
def archive(verified: Path, tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    """A node on a copy of the archive ``verified``, whose originals may be purged at once."""
    shutil.copytree(verified, tmp_path / "archive")
    with Node(node_settings(tmp_path, receiver, originals={"retain_for": "0d"})) as node:
        yield Archive(node, receiver)


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    """One pool for all audits here, since a worker takes seconds to start."""
    pool = WorkerPool(ReconstructSettings(upscaler="bicubic", threads=1, device="cpu"))
    yield pool
    pool.close()


def node_settings(tmp_path: Path, receiver: Receiver, **changes: Any) -> Settings:
    reconstruct = {"upscaler": "bicubic", "cache": 0, "device": "cpu", **changes.pop("reconstruct", {})}
    return settings_for(tmp_path / "archive", receiver.port, reconstruct=reconstruct, **{"codec": SCALES, **changes})


def audit_with(node: Node, pool: WorkerPool) -> Job:
    """A job that audits all images with these workers."""
    workers = replace(node.archive.workers, reconstruct=pool)
    return make_audit(replace(node.archive, workers=workers), AuditPlan("100%"))


Audited = Callable[..., StoredReport]


@pytest.fixture
def audited(workers: WorkerPool) -> Audited:
    """A function that runs the job on a node as its schedule would, and returns the report."""

    def run(node: Node, pool: WorkerPool = workers) -> StoredReport:
        job = audit_with(node, pool)
        rows = JobRows(node.index.engine)
        rows.ensure([job.name])
        done = Runner(rows, 60).run(job, Cause.COMMAND)
        assert done is not None
        assert done.state is RunState.DONE, done.error
        return node.archive.reports.find(done.report["report"])

    return run


def findings(node: Node, report: StoredReport) -> dict[str, dict[str, Any]]:
    """The findings in the report's JSON file, by SOP Instance UID."""
    data = json.loads(node.archive.reports.json(report).read_text(encoding="utf-8"))
    return {one["sop_instance_uid"]: one for one in data["details"]["findings"]}


def forge(node: Node, before: StoredRendition, row: dict[str, Any] | None = None, **changes: Any) -> None:
    """Replace the verified rendition by another valid object. ``row``: columns of its row to change too."""
    made = decode_rendition(node.store.read(before.rendition_digest))
    digest = node.store.put(encode_rendition(replace(made, **changes)))
    with writing(node.index.engine) as connection:
        changed = update(rendition).where(rendition.c.derived_uid == before.derived_uid)
        connection.execute(changed.values(rendition_digest=digest, **(row or {})))


def spots(made: Dataset) -> bytes:
    """Points in the middle of the breast that change the verified pixels."""
    places = range(100, 200, 10)
    return encode_points(Points(int(made.Rows), int(made.Columns), tuple(Point(at, at, 4, 90) for at in places)))


def now(archive: Archive, ds: Dataset) -> StoredInstance:
    found = archive.node.index.by_uid(ds.SOPInstanceUID)
    assert found is not None
    return found


def current(archive: Archive, ds: Dataset) -> StoredRendition:
    found = now(archive, ds).rendition
    assert found is not None
    return found


def purge(node: Node, but: Dataset | None = None) -> None:
    """Remove every original, or all but one."""
    if but is not None:
        node.index.holds.add(HoldKind.STUDY, but.StudyInstanceUID, reason="test", who="user:test")
    node.retention.purge()


@pytest.mark.slow
def test_a_clean_archive_gives_no_alarm(archive: Archive, audited: Audited) -> None:
    node = archive.node
    report = audited(node)
    assert report.verdict == "Audited 3 reconstructions: all as verified."
    assert not report.alarm
    for ds in IMAGES:
        found = findings(node, report)[ds.SOPInstanceUID]
        assert found["outcome"] == FidelityOutcome.SAME
        assert found["now"] == pytest.approx(found["recorded"], rel=1e-6)
        assert found["now"]["psnr_db"] == pytest.approx(current(archive, ds).verdict.psnr_db, rel=1e-6)
    strata = report.summary["strata"]
    assert strata["all"]["images"] == 3
    assert strata["device: Latent PACS tests Other"]["audited"] == 1
    assert strata["site: West"]["measured"] == 1
    page = node.archive.reports.html(report).read_text(encoding="utf-8")
    assert "Passed" in page
    assert page.count("data:image/png") == 18, "three images, whole and in detail: original, made, difference"
    text = re.sub(r"data:image/png;base64,[^\"]*", "", page)
    assert "ller" not in text, "Müller, in whatever encoding"
    assert "P0001" not in text


def test_nothing_to_audit_is_no_alarm(tmp_path: Path, receiver: Receiver, audited: Audited) -> None:
    with Node(node_settings(tmp_path, receiver)) as node:
        report = audited(node)
    assert (report.verdict, report.alarm) == ("There is no reconstruction to audit yet.", False)


@pytest.mark.slow
def test_other_pixels_are_withdrawn_and_the_original_served(archive: Archive, audited: Audited) -> None:
    node, before = archive.node, current(archive, SECOND)
    forge(node, before, points=spots(SECOND))
    report = audited(node)
    assert report.alarm
    assert report.verdict == "1 of 3 reconstructions failed: 1 withdrawn."
    assert report.summary["images"] == 3, "of which the sample was drawn, the one that was withdrawn included"
    found = findings(node, report)[SECOND.SOPInstanceUID]
    assert (found["outcome"], found["action"]) == (FidelityOutcome.MISMATCH, "withdrawn")
    after = now(archive, SECOND)
    assert (after.state, after.rendition) == (InstanceState.WITHDRAWN, None)
    assert after.reason.startswith("audit: other pixels")
    sent = pixel_digest(breast(640, 512, seed=1))
    assert moved(archive, SECOND) == {SECOND.SOPInstanceUID: sent}
    assert moved(archive, SECOND, before.derived_uid) == {SECOND.SOPInstanceUID: sent}, "its UID leads to the image"
    assert now(archive, FIRST).state is InstanceState.VERIFIED
    told = [record.entry.action for record in node.index.trail.records(uid=SECOND.SOPInstanceUID)]
    assert "rendition.withdraw" in told
    assert node.trail.broken() == ""
    again = audited(node)
    assert (again.alarm, again.summary["audited"]) == (False, 2)
    assert node.index.retry_failed() == 1
    node.archivist.wake()
    healed = archive.settled(SECOND.SOPInstanceUID)
    assert healed.state is InstanceState.VERIFIED
    made_again = current(archive, SECOND)
    assert (made_again.derived_uid, made_again.output_digest) == (before.derived_uid, before.output_digest)


@pytest.mark.slow
def test_a_record_that_was_changed_with_the_pixels_is_found_too(archive: Archive, audited: Audited) -> None:
    """The rendition states the digest of its changed pixels, and the index still has the verified one."""
    node, before = archive.node, current(archive, FIRST)
    made = decode_rendition(node.store.read(before.rendition_digest))
    base = decode_base(node.store.read(before.base_digest))
    changed = replace(made, points=spots(FIRST))
    forge(
        node,
        before,
        points=changed.points,
        output_digest=pixel_digest(Rendering.of(base, changed, CATALOGUE).pixels(draw=True)),
    )
    assert audited(node).summary["withdrawn"] == 1


@pytest.mark.slow
def test_without_an_original_it_is_flagged_until_it_passes(archive: Archive, audited: Audited) -> None:
    node, before = archive.node, current(archive, FIRST)
    purge(node)
    forge(node, before, points=spots(FIRST))
    report = audited(node)
    assert report.verdict == "1 of 3 reconstructions failed: 1 flagged."
    after = now(archive, FIRST)
    assert after.state is InstanceState.FAILED
    assert after.reason.endswith("no original to serve instead")
    study = client.image_identifier(FIRST.StudyInstanceUID)
    final = client.move(study, archive.address, calling="VIEWER", destination="VIEWER")
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 1)
    assert node.index.retry_failed() == 0, "there is nothing that the archivist could work on"
    assert audited(node).summary["flagged"] == 1, "it is looked at every time, and stays flagged"
    forge(node, before)
    healed = audited(node)
    assert (healed.alarm, healed.summary["cleared"]) == (False, 1)
    assert (now(archive, FIRST).state, now(archive, FIRST).reason) == (InstanceState.VERIFIED, "")
    assert list(moved(archive, FIRST)) == [before.derived_uid]


def elsewhere(node: Node, before: StoredRendition) -> dict[str, str]:
    """The numerics of another machine."""
    return {**decode_rendition(node.store.read(before.rendition_digest)).numerics, "torch": "0.0.1", "kernels": "NEON"}


@pytest.mark.slow
def test_other_numerics_are_measured_anew_and_no_alarm_while_there_are_originals(
    archive: Archive, audited: Audited
) -> None:
    """The images look as if another machine had verified them, whose pixels differ from ours in some places."""
    node = archive.node
    for ds in IMAGES:
        before = current(archive, ds)
        forge(node, before, {"output_digest": "0" * 64}, numerics=elsewhere(node, before), output_digest="0" * 64)
    report = audited(node)
    told = findings(node, report)
    assert not report.alarm
    assert report.verdict.endswith("3 of them within tolerance under other numerics, so that originals are sent.")
    assert report.summary["outcomes"] == {"other numerics": 3}
    assert "torch" in told[FIRST.SOPInstanceUID]["reason"]
    assert told[FIRST.SOPInstanceUID]["now"]["psnr_db"] > 30
    assert now(archive, FIRST).state is InstanceState.VERIFIED


@pytest.mark.slow
def test_other_numerics_without_an_original_are_an_alarm(archive: Archive, audited: Audited) -> None:
    """The machine is at fault and not the image, whose state does not change: another machine may still make it."""
    node = archive.node
    purge(node, but=FIRST)
    before = current(archive, SECOND)
    forge(node, before, {"output_digest": "0" * 64}, numerics=elsewhere(node, before), output_digest="0" * 64)
    final = client.move(
        client.image_identifier(SECOND.StudyInstanceUID), archive.address, calling="VIEWER", destination="VIEWER"
    )
    assert (final.Status, final.NumberOfFailedSuboperations) == (0xA702, 1)
    report = audited(node)
    assert (report.alarm, report.verdict) == (True, "1 cannot be made here.")
    assert report.summary["failed"] == 0
    assert "torch" in findings(node, report)[SECOND.SOPInstanceUID]["reason"]
    assert now(archive, SECOND).state is InstanceState.VERIFIED


def verified_elsewhere(node: Node, before: StoredRendition, **changes: Any) -> str:
    """Change a rendition as if another machine had verified it with other pixels. Returns the UID of that
    reconstruction."""
    made = decode_rendition(node.store.read(before.rendition_digest))
    there = with_derived_uid(replace(made, numerics=elsewhere(node, before), output_digest="0" * 64, **changes))
    digests = {
        "output_digest": "0" * 64,
        "numerics_digest": "1" * 64,
        "rendition_digest": node.store.put(encode_rendition(there)),
    }
    uids = {"derived_uid": there.derived_uid, "structure_uid": there.structure_uid}
    with writing(node.index.engine) as connection:
        changed = update(rendition).where(rendition.c.derived_uid == before.derived_uid)
        connection.execute(changed.values(**uids, **digests))
    return there.derived_uid


@pytest.mark.slow
def test_after_other_numerics_purged_images_are_served_again(
    archive: Archive, audited: Audited, receiver: Receiver
) -> None:
    """Their pixels get UIDs of their own if, by the fingerprint, they differ from the verified ones only by
    rounding."""
    node = archive.node
    purge(node, but=FIRST)
    before = current(archive, SECOND)
    there = verified_elsewhere(node, before)
    strange = verified_elsewhere(node, current(archive, THIRD), points=spots(THIRD))

    report = reverified(node)
    assert (report["tried"], report["passed"], report["kept"]) == (2, 1, 1), report
    assert "differ by more than rounding" in report["kept_list"][0]["reason"]
    assert current(archive, THIRD).derived_uid == strange
    made = current(archive, SECOND)
    assert (made.derived_uid, made.output_digest) == (before.derived_uid, before.output_digest)
    stored = decode_rendition(node.store.read(made.rendition_digest))
    assert (stored.measured_uid, stored.verdict) == (there, made.verdict)
    assert moved(archive, SECOND) == {made.derived_uid: made.output_digest}
    sent = dcmread(receiver.received[made.derived_uid])
    assert pixel_digest(sent.pixel_array) == made.output_digest
    assert f"figures of {there}, from which these pixels differ by rounding" in sent.DerivationDescription
    outcomes = {uid: one["outcome"] for uid, one in findings(node, audited(node)).items()}
    assert outcomes[SECOND.SOPInstanceUID] == FidelityOutcome.SAME
    assert outcomes[THIRD.SOPInstanceUID] == FidelityOutcome.NOT_HERE
    assert reverified(node)["tried"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_after_other_numerics_an_image_whose_original_cannot_be_read_is_served_again(
    archive: Archive, damage: str
) -> None:
    """Otherwise peers would get nothing until a disk is mounted, or for ever if the original is lost."""
    node = archive.node
    verified_elsewhere(node, current(archive, FIRST))
    original = node.store.path(now(archive, FIRST).original_digest)
    original.unlink() if damage == "missing" else original.write_bytes(b"damaged")
    report = reverified(node)
    assert (report["tried"], report["passed"]) == (1, 1), report
    made = current(archive, FIRST)
    assert moved(archive, FIRST) == {made.derived_uid: made.output_digest}
    assert reverified(node)["tried"] == 0


@pytest.mark.slow
def test_a_machine_that_is_used_again_leaves_no_objects_behind(archive: Archive) -> None:
    """The pixels of this machine have a rendition already. The object of that has other numerics and no measured
    UID."""
    node = archive.node
    purge(node, but=FIRST)
    first = current(archive, SECOND)
    made = decode_rendition(node.store.read(first.rendition_digest))
    there = with_derived_uid(replace(made, numerics=elsewhere(node, first), output_digest="0" * 64))
    digest = node.store.put(encode_rendition(there))
    new = {"derived_uid": there.derived_uid, "structure_uid": there.structure_uid, "output_digest": "0" * 64}
    new |= {"rendition_digest": digest, "numerics_digest": "1" * 64}
    with writing(node.index.engine) as connection:
        found = connection.execute(select(rendition).where(rendition.c.derived_uid == first.derived_uid)).one()
        row = {name: value for name, value in found._asdict().items() if name != "key"}
        key = connection.execute(insert(rendition).values(row | new).returning(rendition.c.key)).scalar_one()
        mine = update(instance).where(instance.c.sop_instance_uid == SECOND.SOPInstanceUID)
        connection.execute(mine.values(rendition_key=key))
    objects = set(node.store.digests())
    assert reverified(node)["passed"] == 1
    assert current(archive, SECOND) == first
    node.index.garbage.collect(node.archive.stores)
    assert set(node.store.digests()) == objects


@pytest.mark.slow
def test_after_other_numerics_images_with_originals_are_measured_again(archive: Archive) -> None:
    node = archive.node
    there = verified_elsewhere(node, current(archive, FIRST))
    report = reverified(node)
    assert (report["tried"], report["passed"]) == (1, 1), report
    made = current(archive, FIRST)
    stored = decode_rendition(node.store.read(made.rendition_digest))
    assert (made.derived_uid == there, stored.measured_uid) == (False, "")
    assert moved(archive, FIRST) == {made.derived_uid: made.output_digest}


@pytest.mark.slow
def test_other_numerics_that_are_worse_are_withdrawn(archive: Archive, audited: Audited) -> None:
    before = current(archive, FIRST)
    forge(archive.node, before, numerics=elsewhere(archive.node, before), points=spots(FIRST))
    report = audited(archive.node)
    assert findings(archive.node, report)[FIRST.SOPInstanceUID]["outcome"] == FidelityOutcome.WORSE
    assert now(archive, FIRST).state is InstanceState.WITHDRAWN


@pytest.mark.slow
def test_figures_away_from_those_recorded_are_an_alarm_but_nothing_is_withdrawn(
    archive: Archive, audited: Audited
) -> None:
    with writing(archive.node.index.engine) as connection:
        connection.execute(update(rendition).values(psnr_db=rendition.c.psnr_db + 2))
    report = audited(archive.node)
    assert report.alarm
    assert report.verdict == "3 measured otherwise."
    assert now(archive, FIRST).state is InstanceState.VERIFIED


@pytest.mark.slow
def test_damage_is_left_to_the_scrub(archive: Archive, audited: Audited) -> None:
    """A flipped bit in an original or in a base must not count against the reconstruction."""
    node = archive.node
    for digest in (now(archive, FIRST).original_digest, current(archive, SECOND).base_digest):
        path = node.store.path(digest)
        data = bytearray(path.read_bytes())
        data[-1000] ^= 1
        path.write_bytes(data)
    report = audited(node)
    told = findings(node, report)
    assert [told[ds.SOPInstanceUID]["outcome"] for ds in (FIRST, SECOND)] == [FidelityOutcome.DAMAGED] * 2
    assert (report.alarm, report.summary["withdrawn"]) == (True, 0)
    assert now(archive, FIRST).state is InstanceState.VERIFIED


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_where_it_was(archive: Archive, workers: WorkerPool, audited: Audited) -> None:
    node, rows = archive.node, JobRows(archive.node.index.engine)
    job = audit_with(node, workers)
    rows.ensure([job.name])
    runner = Runner(rows, 60)
    stopped = runner.run(job, Cause.COMMAND, watch=lambda *_: runner.stop())
    assert stopped is not None
    assert stopped.state is RunState.INTERRUPTED
    assert stopped.report == {"finished": False, "audited": 1, "left": 2}
    seed = rows.memory("audit")["seed"]
    assert not node.archive.reports.rows.newest()
    report = audited(node)
    assert (report.summary["seed"], report.summary["audited"]) == (seed, 3)
    assert rows.history("audit", 1)[0].done == 3
    assert rows.memory("audit") == {}


@pytest.mark.slow
def test_drift_against_recorded_runs_is_an_alarm(archive: Archive, audited: Audited) -> None:
    """Five recorded runs have measured far better images than there are today."""
    reports = archive.node.archive.reports
    first = audited(archive.node)
    better = {"mean": first.summary["fsim_mean"] + 0.02, "sd": 0.005}
    for number in range(5):
        summary = json.loads(json.dumps(first.summary))
        summary["strata"]["all"] |= {"fsim_mean": better, "measured": 20}
        times = {"started_at": float(number), "finished_at": float(number)}
        reports.rows.add(NewReport(AUDIT, f"audit-{number}", **times, verdict="", alarm=False, summary=summary))
    report = audited(archive.node)
    assert (report.alarm, report.verdict) == (True, "Figures drift: all.")
    page = reports.html(report).read_text(encoding="utf-8")
    assert "more than 0.01 below" in page
    assert "Needs attention" in page
    assert now(archive, FIRST).state is InstanceState.VERIFIED


@pytest.mark.slow
def test_a_model_whose_weights_changed(tmp_path: Path, receiver: Receiver, audited: Audited) -> None:
    """The weights change both where the model is installed and in the archive's copy. Its renditions are withdrawn, and
    the originals are served."""
    from node.upscalers.mammo import SHIPPED

    weights = shutil.copytree(SHIPPED, tmp_path / "weights")
    reconstruct = {"upscaler": "mammo", "mammo": {"weights": str(weights)}}
    own = weights / "config.json"
    own.write_text(own.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # not the one that comes with the package
    taken = {"reconstruct": reconstruct, "codec": {"profile": "paper"}}  # the configured upscaler, whatever wins
    with Node(node_settings(tmp_path, receiver, **taken)) as node:
        (held,) = send_and_settle(Archive(node, receiver), tmp_path, FIRST)
        assert held.rendition is not None
        assert held.rendition.upscaler == "mammo"
        kept = ModelRows(node.index.engine).files("mammo", held.rendition.weights_digest)
    for path in (node.store.path(file.digest) for file in kept if file.name == own.name):
        path.write_bytes(path.read_bytes() + b" ")
    own.write_text(own.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with Node(node_settings(tmp_path, receiver, **taken)) as node:
        archive = Archive(node, receiver)
        report = audited(node, node.pool)
        assert findings(node, report)[FIRST.SOPInstanceUID]["outcome"] == FidelityOutcome.UNMADE
        assert now(archive, FIRST).state is InstanceState.WITHDRAWN
        assert list(moved(archive, FIRST)) == [FIRST.SOPInstanceUID]


@pytest.mark.slow
def test_the_command_beside_a_running_node(archive: Archive, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    told = archive.node.settings.model_dump(mode="json", include={"storage": {"root"}, "reconstruct": True})
    config.write_text(yaml.safe_dump({**told, "codec": SCALES}), encoding="utf-8")
    done = command("audit", "run", "--sample", "1", "--json", "--config", str(config))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["summary"]["audited"], found["alarm"]) == (1, False)
    assert Path(found["html"]).is_file()
    forge(archive.node, current(archive, FIRST), points=spots(FIRST))
    assert command("audit", "run", "--sample", "100%", "--config", str(config)).returncode == 1
    assert now(archive, FIRST).state is InstanceState.WITHDRAWN
    wrong = command("audit", "run", "--sample", "many", "--config", str(config))
    assert wrong.returncode == 2
    assert "is not a sample" in wrong.stderr


@pytest.mark.slow
def test_chromium_shows_the_page_of_an_audit(archive: Archive, audited: Audited, tmp_path: Path) -> None:
    reports = archive.node.archive.reports
    for _ in range(2):
        forge(archive.node, current(archive, FIRST))
        audited(archive.node)
    forge(archive.node, current(archive, FIRST), points=spots(FIRST))
    seen = open_page(reports.html(audited(archive.node)), tmp_path)
    assert (seen.requests, seen.console) == ([], [])
    for text in ("Fidelity audit", "1 of 3 reconstructions failed: 1 withdrawn.", "device: Latent PACS tests Other"):
        assert text in seen.dom
