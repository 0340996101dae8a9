"""Proves that after a change of model every UID keeps its pixels, and that only passing images get a new rendition."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset, dcmread
from sqlalchemy import delete, func, select, update

from node.app import Node
from node.archive.encode.reverification import Reverification
from node.archive.model_store import ModelStore
from node.config import Settings
from node.dimse import client
from node.dimse.client import Receiver
from node.upscalers.protocol import Installed
from node.workers.pool import WorkerPool
from storage.formats.payload import decode_rendition, structure_uid
from storage.index import Index
from storage.index.connection import writing
from storage.index.integrity import Integrity
from storage.index.reverifications import ReverificationOutcome, Reverifications, ReverificationTerms
from storage.index.tables import instance, model_file, rendition, reverification
from storage.records import InstanceState, NewRendition, OperatingPoint, Verdict
from tests.conftest import Archive, settings_for
from tests.support.commands import run as command
from tests.support.holdings import Holdings, filled
from tests.support.job_runs import reverified
from tests.support.samples import breast, mammogram
from tests.support.transfers import moved, send_and_settle

SCALES = {"scales": [1]}
OTHER = ReverificationTerms("mammo", "d" * 64, "steps 1", True, "t" * 64)


def settings(root: Path, receiver: Receiver, upscaler: str, **changes: Any) -> Settings:
    reconstruct = {"upscaler": upscaler, "cache": 0, "device": "cpu", **changes.pop("reconstruct", {})}
    return settings_for(root, receiver.port, reconstruct=reconstruct, **{"codec": SCALES, **changes})


def seen(archive: Archive, ds: Dataset, *uids: str) -> list[str]:
    """The SOP Instance UIDs that a peer of policy ``reconstructed`` finds, if it asks for these."""
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID, query.SeriesInstanceUID = ds.StudyInstanceUID, ds.SeriesInstanceUID
    query.SOPInstanceUID = list(uids) or None
    return [str(one.SOPInstanceUID) for one in client.find(query, archive.address, calling="VIEWER")]


@pytest.mark.slow
def test_a_new_model_adds_a_rendition_and_both_uids_keep_their_pixels(tmp_path: Path, receiver: Receiver) -> None:
    # an image of which mammo's side information is smaller than that of bicubic
    ds, root = mammogram(breast(600, 500, seed=1)), tmp_path / "a"
    with Node(settings(root, receiver, "bicubic")) as node:
        archive = Archive(node, receiver)
        (held,) = send_and_settle(archive, tmp_path, ds)
        assert held.state is InstanceState.VERIFIED, held.reason
        assert held.rendition is not None
        assert reverified(node)["tried"] == 0, "the configured model made it"
        old = held.rendition.derived_uid
        before = moved(archive, ds)
        copy = receiver.received[old].rename(tmp_path / "old.dcm")
    assert before == {old: held.rendition.output_digest}

    with Node(settings(root, receiver, "mammo")) as node:
        archive = Archive(node, receiver)
        assert moved(archive, ds) == before, "a configuration alone changes no image"
        report = reverified(node)
        assert (report["tried"], report["passed"], report["finished"]) == (1, 1, True)
        now = node.index.by_uid(ds.SOPInstanceUID)
        assert now is not None
        assert now.rendition is not None
        new = now.rendition.derived_uid
        assert (now.state, now.rendition.upscaler, new == old) == (InstanceState.VERIFIED, "mammo", False)
        assert now.rendition.base_digest == held.rendition.base_digest, "the base stays"
        made = decode_rendition(node.store.read(now.rendition.rendition_digest))
        assert made.verdict.passed
        assert made.derived_uid == new
        assert reverified(node)["tried"] == 0

    with Node(settings(root, receiver, "mammo")) as node:
        archive = Archive(node, receiver)
        assert moved(archive, ds) == {new: now.rendition.output_digest}
        assert moved(archive, ds, old) == before
        assert dcmread(receiver.received[old])[0x0099, 0x1002].value == "bicubic"
        assert moved(archive, ds, old, new) == {**before, new: now.rendition.output_digest}
        assert moved(archive, ds, ds.SOPInstanceUID) == {new: now.rendition.output_digest}
        assert moved(archive, ds, old, to="AUTOVIEW") == before
        assert list(moved(archive, ds, old, to="EXACTVIEW")) == [ds.SOPInstanceUID]
        assert seen(archive, ds) == [new], "one encoding per image"
        assert seen(archive, ds, old) == [old]
        assert seen(archive, ds, old, new) == seen(archive, ds, old, ds.SOPInstanceUID) == [new]
        statuses: list[int] = []
        client.store([copy], archive.address, calling="MODALITY", each=lambda _, status, __: statuses.append(status))
        assert statuses == [0x0000], "an own reconstruction that comes back is known"
        assert node.index.counts().backlog == 0
        assert node.index.quarantine.all() == []

    with Node(settings(root, receiver, "bicubic")) as node:  # back again: its rendition is there already
        objects = set(node.store.digests())
        assert reverified(node)["passed"] == 1
        back = node.index.by_uid(ds.SOPInstanceUID)
        assert back is not None
        assert back.rendition == held.rendition
        with node.index.engine.connect() as connection:
            assert connection.execute(select(func.count()).select_from(rendition)).scalar() == 2
        promised = {one.digest for one in Integrity(node.index.engine).expected()}
        assert objects <= promised, "nothing is left that no row knows"

    with Node(settings(root, receiver, "mammo")) as node:  # and forth again
        assert reverified(node)["passed"] == 1
        forth = node.index.by_uid(ds.SOPInstanceUID)
        assert forth is not None
        assert forth.rendition == now.rendition
        assert reverified(node)["tried"] == 0


@pytest.mark.slow
def test_a_model_that_fails_leaves_the_pinned_one_and_is_not_asked_again(tmp_path: Path, receiver: Receiver) -> None:
    ds, root = mammogram(breast(300, 320)), tmp_path / "a"
    with Node(settings(root, receiver, "bicubic")) as node:
        (held,) = send_and_settle(Archive(node, receiver), tmp_path, ds)
        assert held.state is InstanceState.VERIFIED, held.reason
    harder = {"gate": {"balanced": {"lost": [1e-4] * 4}}}
    with Node(settings(root, receiver, "mammo", **harder)) as node:
        report = reverified(node)
        assert (report["tried"], report["kept"]) == (1, 1)
        (kept,) = report["kept_list"]
        assert kept["sop_instance_uid"] == ds.SOPInstanceUID
        assert "lost share" in kept["reason"]
        now = node.index.by_uid(ds.SOPInstanceUID)
        assert now == held
        assert reverified(node)["tried"] == 0
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(root, receiver, "mammo").model_dump(mode="json", by_alias=True)))
    done = command("jobs", "run", "reverify", "--json", "-c", str(config))  # without a node, in its own process
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["passed"] + report["same"] == 1, f"another gate is another question: {report}"


@pytest.mark.slow
def test_what_is_not_held_is_not_tried_and_nothing_else_stops(tmp_path: Path, receiver: Receiver) -> None:
    gone, broken, good = (mammogram(breast(600, 500, seed=seed)) for seed in (1, 9, 2))
    root = tmp_path / "a"
    with Node(settings(root, receiver, "bicubic")) as node:
        held = send_and_settle(Archive(node, receiver), tmp_path, gone, broken, good)
        assert {one.state for one in held} == {InstanceState.VERIFIED}
        aside = node.store.path(held[0].original_digest).rename(tmp_path / "aside")
        node.store.path(held[1].original_digest).write_bytes(node.store.read(held[2].original_digest))
    with Node(settings(root, receiver, "mammo")) as node:
        report = reverified(node)
        assert (report["tried"], report["passed"], report["untried"]) == (3, 1, 2)
        reasons = {one["sop_instance_uid"]: one["reason"] for one in report["untried_list"]}
        assert held[0].original_digest in reasons[gone.SOPInstanceUID]
        assert "no longer has that digest" in reasons[broken.SOPInstanceUID]
        now = node.index.by_uid(broken.SOPInstanceUID)
        assert now is not None
        assert (now.state, now.rendition) == (InstanceState.VERIFIED, held[1].rendition), (
            "flagged, and served as before"
        )
        aside.rename(node.store.path(held[0].original_digest))
        report = reverified(node)
        assert (report["passed"], report["untried"]) == (1, 0), "one that came back is tried; a damaged one is not"
        assert reverified(node)["tried"] == 0


@pytest.mark.slow
def test_a_model_that_is_not_installed_any_more_is_read_from_the_objects(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    from node.upscalers.mammo import SHIPPED, Mammo

    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")  # a model of its own, as a fine-tuned one would be
    digest = Mammo(folder).weights_digest
    ds, root = mammogram(breast(300, 320)), tmp_path / "a"
    paper = {"codec": {"profile": "paper"}}  # the configured upscaler, whether it wins or not
    own = {"reconstruct": {"mammo": {"weights": str(folder)}}}
    with Node(settings(root, receiver, "mammo", **own, **paper)) as node:
        (held,) = send_and_settle(Archive(node, receiver), tmp_path, ds)
        assert held.rendition is not None, held.reason
        assert held.rendition.weights_digest == digest
        kinds = {one.kind for one in Integrity(node.index.engine).expected()}
        assert "model" in kinds
        with writing(node.index.engine) as connection:  # as an archive is from before models were kept
            connection.execute(delete(model_file))
        assert reverified(node)["tried"] == 0
        assert ModelStore(node.index, node.store).keeps("mammo", digest)
    shutil.rmtree(folder)
    config_file = tmp_path / "config.yaml"
    config_file.write_text(
        yaml.safe_dump(settings(root, receiver, "mammo", **paper).model_dump(mode="json", by_alias=True))
    )
    listed = {
        row["digest"]: row for row in json.loads(command("model", "list", "--json", "-c", str(config_file)).stdout)
    }
    assert (listed[digest]["role"], listed[digest]["renditions"]) == ("kept in the object store", 1)
    assert listed[digest]["bytes"] > 10**6
    pixels = {held.rendition.derived_uid: held.rendition.output_digest}
    with Node(settings(root, receiver, "mammo", **paper)) as node:
        archive = Archive(node, receiver)
        assert moved(archive, ds) == pixels
        assert reverified(node)["passed"] == 1, "the shipped model is another one"
        assert moved(archive, ds, held.rendition.derived_uid) == pixels
        shutil.rmtree(root / "models")
        assert moved(archive, ds, held.rendition.derived_uid) == pixels
        weights = ModelStore(node.index, node.store).folder("mammo", digest)
        assert weights is not None
        (weights / "config.json").resolve().unlink()
        assert list(moved(archive, ds, held.rendition.derived_uid)) == [ds.SOPInstanceUID], "the original instead"
    assert digest in caplog.text


def test_a_model_that_changes_while_it_is_taken_in_is_not_kept(
    held: Holdings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    line = f"weights {hashlib.sha256(b'one').hexdigest()}\n"
    model = Installed("mammo", hashlib.sha256(line.encode()).hexdigest(), "", (("weights", file),))
    models = ModelStore(held.index, held.store)
    file.write_bytes(b"two")
    models.keep(model)
    assert "changed while in use" in caplog.text
    assert models.folder("mammo", model.weights_digest) is None
    file.write_bytes(b"one")
    models.keep(model)
    models.keep(model)
    folder = models.folder("mammo", model.weights_digest)
    assert folder is not None
    assert (folder / "weights").read_bytes() == b"one"


# --- claims ---


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Holdings]:
    made = filled(tmp_path, 20)
    yield made
    made.index.close()


def trials(index: Index, owner: str, start: threading.Barrier | None = None) -> list[int]:
    """Claim all due images, as a node would. Returns their keys."""
    rows, found, last = Reverifications(index.engine), list[int](), 0
    if start is not None:
        start.wait()
    while trial := rows.claim(OTHER, owner, 60, after=last, most=3):
        found.append(trial.instance_key)
        last = trial.instance_key
    return found


def test_two_nodes_never_try_the_same_image(held: Holdings) -> None:
    other = Index.open(str(held.index.engine.url))
    start, found = threading.Barrier(2), dict[str, list[int]]()

    def work(name: str, index: Index) -> None:
        found[name] = trials(index, name, start)

    threads = [threading.Thread(target=work, args=pair) for pair in (("one", held.index), ("two", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    both = [*found["one"], *found["two"]]
    assert len(both) == len(set(both)) == 20
    assert trials(held.index, "three") == []


def test_a_dead_nodes_image_is_taken_over_and_its_late_answer_does_not_count(held: Holdings) -> None:
    rows = Reverifications(held.index.engine)
    dead = rows.claim(OTHER, "dead", 0.0, after=0, most=3)
    assert dead is not None
    heir = rows.claim(OTHER, "heir", 60, after=0, most=3)
    assert heir is not None
    assert (heir.key, heir.attempts) == (dead.key, 2)
    assert not rows.renew(dead, 60)
    assert rows.adopt(dead, new_rendition("2.25.9001"))[0] is ReverificationOutcome.MOVED
    assert rows.adopt(heir, new_rendition("2.25.9002"))[0] is ReverificationOutcome.PASSED
    now = held.index.by_key(heir.instance_key)
    assert now is not None
    assert now.rendition is not None
    assert now.rendition.derived_uid == "2.25.9002"
    assert held.index.rendition("2.25.9001") is None


def test_an_image_that_crashes_its_workers_is_let_be(held: Holdings) -> None:
    rows = Reverifications(held.index.engine)
    for _ in range(3):
        trial = rows.claim(OTHER, "node", 0.0, after=0, most=3)
        assert trial is not None
        assert trial.instance_key == 1
    following = rows.claim(OTHER, "node", 60, after=0, most=3)
    assert following is not None
    assert following.instance_key == 2


@pytest.mark.parametrize("change", ["sent back", "another rendition"])
def test_an_image_that_changed_meanwhile_is_left_alone(held: Holdings, change: str) -> None:
    rows = Reverifications(held.index.engine)
    trial = rows.claim(OTHER, "node", 60, after=0, most=3)
    assert trial is not None
    values = {"state": InstanceState.RECEIVED} if change == "sent back" else {"rendition_key": 2}
    with writing(held.index.engine) as connection:
        connection.execute(update(instance).where(instance.c.key == 1).values(values))
    assert rows.adopt(trial, new_rendition("2.25.9001"))[0] is ReverificationOutcome.MOVED
    assert held.index.rendition("2.25.9001") is None
    with held.index.engine.connect() as connection:
        row = connection.execute(select(reverification)).one()
    assert (row.outcome, row.attempts, row.lease_until) == ("", 0, None)


def test_a_uid_that_stands_for_other_pixels_is_not_issued_again(held: Holdings) -> None:
    rows = Reverifications(held.index.engine)
    trial = rows.claim(OTHER, "node", 60, after=0, most=3)
    assert trial is not None
    outcome, reason = rows.adopt(trial, new_rendition("2.25.2"))
    assert outcome is ReverificationOutcome.KEPT
    assert "is the UID of another object" in reason
    now = held.index.by_key(1)
    assert now is not None
    assert now.rendition == trial.current


def test_without_a_gate_no_verified_image_is_touched(held: Holdings) -> None:
    rows, ungated = Reverifications(held.index.engine), ReverificationTerms("mammo", "d" * 64, "", False, "u" * 64)
    assert rows.count(OTHER, 3) == 20
    assert rows.count(ungated, 3) == 0
    with writing(held.index.engine) as connection:
        connection.execute(update(instance).where(instance.c.key == 7).values(state=InstanceState.MEASURED))
    assert rows.count(ungated, 3) == 1


def new_rendition(uid: str) -> NewRendition:
    verdict = Verdict(40.0, 0.95, 0.92, 4)
    return NewRendition(
        *(uid, structure_uid(uid), "b" * 64, 1, "e" * 64, 1, OperatingPoint(1, "jpegxl", 1.0), "mammo", "d" * 64),
        *("0" * 64, "1" * 64, verdict, (), 1.0),
    )


# --- the run ---


@contextmanager
def working(held: Holdings, root: Path, original: Path, busy: Callable[[], bool]) -> Iterator[Reverification]:
    """The job's work on ``held`` with a real worker, every original read from ``original``."""
    configured = settings_for(root, reconstruct={"upscaler": "mammo", "device": "cpu"})
    pool = WorkerPool(configured.reconstruct)
    try:
        yield Reverification(held.index, held.store, configured, pool, lambda _: nullcontext(original), busy)
    finally:
        pool.close()


def leased(index: Index) -> int:
    with index.engine.connect() as connection:
        found = select(func.count()).where(reverification.c.lease_owner.is_not(None))
        return int(connection.execute(found).scalar_one())


def test_the_archivist_goes_first(held: Holdings, tmp_path: Path) -> None:
    looks = iter(range(10**6))
    with working(held, tmp_path, tmp_path, lambda: True) as work:
        report = work.run(lambda *_: None, lambda: next(looks) > 5)
    assert (report["tried"], report["finished"]) == (0, False)
    with held.index.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(reverification)).scalar() == 0


def test_cancel_in_the_middle_of_an_image_gives_it_back(held: Holdings, tmp_path: Path) -> None:
    """The cancellation arrives while the worker waits for an original that never comes."""
    never = tmp_path / "never"
    os.mkfifo(never)
    with working(held, tmp_path, never, lambda: False) as work:
        report = work.run(lambda *_: None, lambda: leased(held.index) > 0)
    assert (report["tried"], report["finished"]) == (0, False)
    assert leased(held.index) == 0
    with held.index.engine.connect() as connection:
        row = connection.execute(select(reverification)).one()
    assert (row.outcome, row.attempts) == ("", 0), "an interruption is no failure"
