"""Proves that a deletion removes all of an image and nothing else, also after kills and beside holds, encoding and
uploads.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from sqlalchemy import func, insert, select

from node.app import Node
from node.archive.deletion import Deletion
from node.cli import exit_codes
from node.config import parse
from node.dimse.client import Receiver
from storage.errors import ChangeRefused, LatentPacsError, UnknownUid
from storage.index import Index
from storage.index.connection import now, writing
from storage.index.holdings import Added
from storage.index.integrity import Integrity, NewDamage
from storage.index.tables import commitment, instance, patient, pin, series, study
from storage.records import HoldKind, InstanceState, TrailRecord
from tests.conftest import Archive, settings_for, wait_for
from tests.support.archive_parts import ArchiveParts, Killed
from tests.support.commands import invoke
from tests.support.index_rows import new_instance
from tests.support.peers import findscu, getscu, movescu, storescu
from tests.support.samples import breast, mammogram, write

WHY = {"reason": "sent by mistake", "who": "user:test"}


def small(**changes: Any) -> Dataset:
    return mammogram(breast(64, 48), **changes)


def deletion_of(bench: ArchiveParts, **sections: Any) -> Deletion:
    settings = parse({"storage": {"root": str(bench.root)}, **sections}, "test")
    return Deletion(bench.index, bench.stores, bench.trail, settings, bench.root / "rendered")


def rows(index: Index) -> dict[str, int]:
    with index.engine.connect() as connection:
        return {
            table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
            for table in (patient, study, series, instance)
        }


@pytest.fixture
def bench(tmp_path: Path) -> ArchiveParts:
    return ArchiveParts(tmp_path / "archive", coder="jpegls")


# --- kills ---


def killed_in_the_journal(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    append = bench.journal.append

    def with_tombstones_only_then_die(records: Sequence[TrailRecord]) -> None:
        if bench.index.tombstones.digests_to_delete():
            raise Killed
        append(records)

    monkeypatch.setattr(bench.journal, "append", with_tombstones_only_then_die)


def killed_before_the_rows(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_deleted = bench.index.tombstones.mark_deleted

    def then_die(*arguments: Any, **named: Any) -> Any:
        mark_deleted(*arguments, **named)
        raise Killed

    monkeypatch.setattr(bench.index.tombstones, "mark_deleted", then_die)


def killed_before_the_files(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    delete_rows = bench.index.tombstones.delete_rows

    def then_die() -> int:
        if delete_rows():
            raise Killed
        return 0

    monkeypatch.setattr(bench.index.tombstones, "delete_rows", then_die)


def killed_between_files(bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, removed = bench.hot.delete, []

    def first_only(digest: str) -> None:
        if removed:
            raise Killed
        removed.append(digest)
        remove(digest)

    monkeypatch.setattr(bench.hot, "delete", first_only)


@pytest.mark.parametrize(
    "kill", [killed_before_the_rows, killed_in_the_journal, killed_before_the_files, killed_between_files]
)
def test_a_deletion_survives_a_kill_at_any_step(
    bench: ArchiveParts, monkeypatch: pytest.MonkeyPatch, kill: Callable[[ArchiveParts, pytest.MonkeyPatch], None]
) -> None:
    kept = bench.receive("1.2.3.1")
    bench.receive("1.2.3.2")
    bench.work()
    files = bench.files()
    unwanted = bench.index.by_uid("1.2.3.2")
    assert unwanted is not None
    aside = bench.root / "damaged" / f"{unwanted.original_digest}.1"
    aside.parent.mkdir()
    aside.write_bytes(b"a copy that a scrub moved aside")
    kill(bench, monkeypatch)
    with pytest.raises(Killed):
        deletion_of(bench).delete("image", "1.2.3.2", **WHY)
    bench.index.close()
    monkeypatch.undo()

    again = ArchiveParts(bench.root)
    assert again.index.tombstones.in_force("1.2.3.2") is not None
    deletion_of(again).finish()
    assert again.index.by_uid("1.2.3.2") is None
    assert again.index.by_uid("2.25.2") is None
    assert again.files() == files - 3  # original, base, rendition
    assert not aside.exists()
    assert again.index.add(new_instance("2.25.2")) is Added.DELETED
    again.check_promises()
    assert again.read(kept) == kept
    assert again.trail.broken() == ""
    assert [record.entry.action for record in again.journal.records()][-1] == "delete"


# --- rules ---


def test_holds_pins_and_mqsa_refuse_all_of_it(bench: ArchiveParts) -> None:
    for number in (1, 2):
        bench.receive(f"1.2.3.{number}")
    deletion, index = deletion_of(bench), bench.index
    hold = index.holds.add(HoldKind.PATIENT, "P1", **WHY)
    assert [one.kept_because for one in deletion.plan("study", "1.2.1").images] == ["is on hold"] * 2
    with pytest.raises(ChangeRefused, match=r"nothing was deleted: 1\.2\.3\.1 is on hold"):
        deletion.delete("study", "1.2.1", **WHY)
    index.holds.release(hold.key, **WHY)
    pinned = index.by_uid("1.2.3.2")
    assert pinned is not None
    with writing(index.engine) as connection:
        request = {"transaction_uid": "1.9", "calling_aet": "A", "items": [], "duplicate": 0, "state": "reported"}
        more = {"attempts": 0, "due": 0.0, "requested_at": now()}
        key = connection.execute(insert(commitment).values(**request, **more).returning(commitment.c.key)).scalar_one()
        until = time.time() + 3600
        connection.execute(insert(pin).values(instance_key=pinned.key, commitment_key=key, until=until))
    with pytest.raises(ChangeRefused, match=r"1\.2\.3\.2 is pinned"):
        deletion.delete("study", "1.2.1", **WHY)
    told = [one.entry for one in index.trail.records()]
    assert [one.action for one in told] == ["hold.add", "delete.refused", "hold.release", "delete.refused"]
    assert (told[1].level, told[1].uids, told[1].outcome) == ("study", ("1.2.1",), "refused")
    assert "1.2.3.1 is on hold" in told[1].detail
    strict = deletion_of(bench, codec={"profile": "us-mqsa"})
    assert "us-mqsa" in strict.plan("image", "1.2.3.1").images[0].kept_because
    with pytest.raises(ChangeRefused, match="MQSA"):
        strict.delete("image", "1.2.3.1", **WHY)
    deletion.delete("image", "1.2.3.1", **WHY)
    assert rows(index) == {"patient": 1, "study": 1, "series": 1, "instance": 1}
    with pytest.raises(UnknownUid, match=r"a reconstruction of 1\.2\.3\.2"):
        deletion.delete("image", "2.25.2", **WHY)


def test_objects_that_another_image_needs_stay(bench: ArchiveParts) -> None:
    """Two images may share one object for their originals, since objects are named by their content."""
    data = bench.receive("1.2.3.1", state=InstanceState.EXACT)
    held = bench.index.by_uid("1.2.3.1")
    assert held is not None
    bench.index.add(new_instance("1.2.3.2", original_digest=held.original_digest, original_bytes=len(data)))
    deletion = deletion_of(bench)
    deletion.delete("image", "1.2.3.1", **WHY)
    assert bench.read(data) == data
    deletion.delete("image", "1.2.3.2", **WHY)
    assert bench.files() == 0
    assert rows(bench.index) == {"patient": 0, "study": 0, "series": 0, "instance": 0}


def test_a_key_is_never_given_again(bench: ArchiveParts) -> None:
    """A reader that has looked up keys must not find another patient's image under them."""
    bench.receive("1.2.3.1")
    first = bench.index.by_uid("1.2.3.1")
    deletion_of(bench).delete("image", "1.2.3.1", **WHY)
    bench.receive("1.2.3.2")
    second = bench.index.by_uid("1.2.3.2")
    assert first is not None
    assert second is not None
    assert second.key > first.key


def test_caches_and_damaged_copies_go_too(bench: ArchiveParts) -> None:
    bench.receive("1.2.3.1")
    held = bench.index.by_uid("1.2.3.1")
    assert held is not None
    assert held.rendition is not None
    digest = held.rendition.rendition_digest
    cached = [bench.root / "rendered" / f"{name}.dcm" for name in (digest, f"{digest}-v1", held.original_digest, "b")]
    damaged = bench.root / "damaged"
    damaged.mkdir()
    aside = [damaged / f"{digest}.1" for digest in (held.rendition.base_digest, "1" * 64, "0" * 64)]
    for path in (*cached, *aside):
        path.write_bytes(b"")
    former = NewDamage("1" * 64, "original", "hot", held.key, "damaged", "flipped", f"{'1' * 64}.1", "flagged")
    Integrity(bench.index.engine).note(former)  # a packed original that was damaged, and sent again since
    deletion_of(bench).delete("image", "1.2.3.1", **WHY)
    assert [path.exists() for path in (*cached, *aside)] == [False, False, False, True, False, False, True]


def test_tombstones_outlive_the_index(bench: ArchiveParts) -> None:
    bench.receive("1.2.3.1")
    bench.receive("1.2.3.2")
    deletion = deletion_of(bench)
    deletion.delete("study", "1.2.1", **WHY)
    deletion.allow_return("image", "1.2.3.2", **WHY)
    bench.index.close()
    for leftover in bench.root.glob("index.sqlite*"):
        leftover.unlink()
    again = ArchiveParts(bench.root)
    for uid in ("1.2.3.1", "1.2.3.2"):  # rows from objects first, as a rebuild may have it
        assert again.index.add(new_instance(uid)) is Added.NEW
    assert again.trail.recover() == 3
    deletion_of(again).finish()
    assert again.index.by_uid("1.2.3.1") is None
    assert again.index.by_uid("1.2.3.2") is not None
    for uid in ("1.2.3.1", "2.25.1"):
        assert again.index.add(new_instance(uid)) is Added.DELETED
    assert again.trail.broken() == ""


@pytest.mark.slow
def test_an_upload_beside_deletions(bench: ArchiveParts) -> None:
    """One thread sends images of a study, and another deletes this study repeatedly. Rows and files always agree."""
    deletion, failures, sent = deletion_of(bench), [], threading.Event()

    def upload() -> None:
        try:
            for number in range(30):
                uid = f"1.2.9.{number}"
                digest = bench.hot.put(uid.encode())
                new = new_instance(uid, original_digest=digest)
                present = lambda digest: bench.hot.path(digest).is_file()  # noqa: E731
                while bench.index.add(new, present) is Added.GONE:
                    bench.hot.put(uid.encode())
        except BaseException as error:
            failures.append(error)
        finally:
            sent.set()

    thread = threading.Thread(target=upload)
    thread.start()
    deleted = 0
    while not sent.is_set():
        with suppress(UnknownUid):
            deleted += len(deletion.delete("study", "1.2.1", **WHY).images)
    thread.join()
    assert failures == []
    held = rows(bench.index)
    assert deleted + held["instance"] == 30
    assert held["series"] == held["study"] == held["patient"] == min(1, held["instance"])
    assert bench.files() == held["instance"]


# --- over real associations, by DCMTK ---


@pytest.fixture
def node(tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    with Node(settings_for(tmp_path / "archive", receiver.port)) as running:
        yield Archive(running, receiver)


def objects_of(archive: Archive) -> list[str]:
    return list(archive.node.store.digests())


@pytest.mark.slow
def test_what_dcmtk_sees_of_a_deletion(node: Archive, tmp_path: Path) -> None:
    ds = mammogram(breast(320, 288))
    other = small(StudyInstanceUID=ds.StudyInstanceUID, SeriesInstanceUID=ds.SeriesInstanceUID)
    files = [write(one, tmp_path / f"{number}.dcm") for number, one in enumerate((ds, other))]
    assert storescu(files, node.address).statuses == [0, 0]
    held = node.settled(ds.SOPInstanceUID)
    node.settled(other.SOPInstanceUID)
    assert held.rendition is not None
    study, series = f"StudyInstanceUID={ds.StudyInstanceUID}", f"SeriesInstanceUID={ds.SeriesInstanceUID}"
    got = getscu(node.address, tmp_path / "got", "-S", "STUDY", study, calling="VIEWER")
    assert got.counts == (2, 0, 0)
    derived = next(path for path in (tmp_path / "got").iterdir() if dcmread(path).ImageType[0] == "DERIVED")

    deletion = node.node.archive.deletion
    assert len(deletion.delete("image", ds.SOPInstanceUID, **WHY).images) == 1
    for uid in (ds.SOPInstanceUID, held.rendition.derived_uid):
        for title in ("VIEWER", "EXACTVIEW", "AUTOVIEW"):
            key = f"SOPInstanceUID={uid}"
            _, found = findscu(node.address, tmp_path / "found", "-S", "IMAGE", study, series, key, calling=title)
            assert found == []
            ran = movescu(node.address, "-S", "IMAGE", study, series, key, calling=title)
            assert (ran.status, ran.counts) == (0x0000, (0, 0, 0))  # as for any UID that was never here
    wait_for(lambda: len(objects_of(node)) == 1, what="only the other image's original is left")

    # neither it nor its reconstruction comes back by itself
    for path in (files[0], derived):
        ran = storescu([path], node.address)
        assert ran.statuses == [0xC004], ran.said
    reasons = [one.reason for one in node.node.index.quarantine.all()]
    assert len(reasons) == 2
    assert all("was deleted here on" in reason for reason in reasons)
    deletion.allow_return("image", ds.SOPInstanceUID, **WHY)
    assert storescu([files[0]], node.address).statuses == [0]
    back = node.settled(ds.SOPInstanceUID)
    assert back.state is InstanceState.VERIFIED
    assert back.rendition is not None
    assert back.rendition.derived_uid == held.rendition.derived_uid
    deletion.delete("study", ds.StudyInstanceUID, **WHY)
    assert node.node.index.by_uid(other.SOPInstanceUID) is None
    assert rows(node.node.index)["patient"] == 0


@pytest.mark.slow
def test_deleted_while_the_archivist_works_on_it(node: Archive, tmp_path: Path) -> None:
    """The archivist loses its claim, and the objects that it made of the image are unlinked."""
    ds = mammogram(breast())
    assert storescu([write(ds, tmp_path / "x.dcm")], node.address).statuses == [0]
    wait_for(lambda: not node.node.pool.idle, what="a worker encodes it")
    node.node.archive.deletion.delete("image", ds.SOPInstanceUID, **WHY)
    assert node.node.index.by_uid(ds.SOPInstanceUID) is None
    wait_for(lambda: not node.node.archivist.busy, what="the archivist is through")
    wait_for(lambda: objects_of(node) == [], what="nothing of it is left")
    assert node.node.index.counts().backlog == 0


# --- the command ---


def test_the_command(tmp_path: Path, receiver: Receiver) -> None:
    config = tmp_path / "config.yaml"
    settings = settings_for(tmp_path / "archive", receiver.port, archivist={"enabled": False})
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", by_alias=True) | {"originals": {}}))
    images = [small(StudyInstanceUID=study) for study in [generate_uid()] * 2]
    with Node(settings) as running:
        files = [write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate(images)]
        assert storescu(files, Archive(running, receiver).address).statuses == [0, 0]

    uid = images[0].StudyInstanceUID
    whole = ("delete", uid, "--level", "study", "-c", str(config))
    planned = json.loads(invoke(*whole, "--dry-run", "--json").stdout)
    assert (planned["dry_run"], len(planned["images"])) == (True, 2)
    assert isinstance(invoke(*whole, "--yes").exception, LatentPacsError)  # no reason given
    hold = json.loads(invoke("hold", "add", "--study", uid, "--reason", "court", "-c", str(config), "--json").stdout)
    held = invoke(*whole, "--dry-run")
    assert (held.exit_code, held.stdout.count("is on hold")) == (exit_codes.REFUSED, 2)
    refused = invoke(*whole, "--reason", "mistake").exception
    assert isinstance(refused, ChangeRefused)
    assert invoke("hold", "release", str(hold["key"]), "--reason", "over", "-c", str(config)).exit_code == 0
    asked = invoke(*whole, "--reason", "mistake", input="n\n")
    assert asked.exit_code == 1
    assert "Delete 2 images" in asked.output
    done = json.loads(invoke(*whole, "--reason", "mistake", "--yes", "--json").stdout)
    assert {one["sop_instance_uid"] for one in done["images"]} == {ds.SOPInstanceUID for ds in images}
    assert isinstance(invoke(*whole, "--reason", "mistake", "--yes").exception, UnknownUid)
    lifted = json.loads(invoke(*whole, "--reason", "right after all", "--allow-return", "--json").stdout)
    assert set(lifted["may_come_back"]) == {ds.SOPInstanceUID for ds in images}
    records = json.loads(invoke("trail", "--study", uid, "-c", str(config), "--json").stdout)
    assert [(one["entry"]["action"], one["entry"]["detail"]) for one in records] == [
        *[("store", "")] * 2,  # records of its images, which are gone
        ("hold.add", "1: court"),
        ("delete.refused", f"mistake; {refused}"),
        ("hold.release", "1: over"),
        *[("delete", "mistake")] * 2,
        ("delete.allow-return", "right after all"),
    ]
    by_image = json.loads(invoke("trail", "--study", images[0].SOPInstanceUID, "-c", str(config), "--json").stdout)
    assert [one["entry"]["action"] for one in by_image] == ["store", "delete", "delete.allow-return"]
