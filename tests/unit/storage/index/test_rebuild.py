"""Proves that a rebuilt index has every row and gives every answer, also after a rebuild that was killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.app import Node, rebuild_index
from node.archive.audit_trail import AuditTrail
from node.archive.index_opening import open_for_command
from node.config import load
from node.dimse import client
from storage.errors import ConfigError, IndexFault, IndexRefused, NewerFormat, StoreFull
from storage.index import Index
from storage.index.opening import compact_journal, open_checked_index
from storage.index.rebuild import rebuild
from storage.objects.change_journal import ChangeJournal
from storage.objects.trail_journal import TrailJournal
from storage.records import HoldKind, TrailEntry
from tests.conftest import Archive
from tests.support.commands import run, run_process
from tests.support.everything import fill, receive, tables_of
from tests.support.filled_archive import FilledArchive, answers, configured
from tests.support.holdings import filled
from tests.support.largest_file import largest_file
from tests.support.paths import ROOT
from tests.support.samples import breast, mammogram, write


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> FilledArchive:
    folder = tmp_path_factory.mktemp("everything")
    config = configured(folder)
    with Node(load(config)) as node:
        uids = fill(node, folder)
    return FilledArchive(config, uids)


@pytest.fixture
def made(original: FilledArchive, tmp_path: Path) -> FilledArchive:
    """A copy of the archive ``original``, for one test."""
    return original.twin(tmp_path)


def rebuilt(made: FilledArchive) -> Any:
    return rebuild_index(made.settings, lambda *_: None)


@pytest.mark.slow
def test_every_row_and_every_answer_comes_back(made: FilledArchive, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    said = answers(made.twin(tmp_path / "twin"))
    before = tables_of(made.file)
    empty = [name for name, rows in before.items() if not rows]
    assert not empty, "a table without a row proves nothing"
    made.drop_index()
    report = rebuilt(made)
    assert report.clean
    after = tables_of(made.file)
    assert {name: rows for name, rows in after.items() if rows != before[name]} == {}
    assert answers(made) == said
    assert (len(said["found"]), said["broken"]) == (5, "")


def test_the_former_index_is_kept_and_a_second_rebuild_is_the_same(made: FilledArchive) -> None:
    before = tables_of(made.file)
    report = rebuilt(made)
    assert tables_of(Path(report.former)) == before
    assert tables_of(made.file) == before
    assert rebuilt(made).clean
    assert tables_of(made.file) == before


def test_the_command(made: FilledArchive) -> None:
    made.drop_index()
    done = run("index", "rebuild", "-c", str(made.config), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["clean"], report["rows"]["instance"]) == (True, 4)
    again = run("index", "rebuild", "-c", str(made.config))
    assert "audit trail" in again.stdout
    with Node(made.settings):
        refused = run("index", "rebuild", "-c", str(made.config))
    assert (refused.returncode, "in use by another node" in refused.stderr) == (3, True)


# --- killed -----------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from storage.index import rebuild
from storage.index.rebuild import rebuild
stage, steps = sys.argv[2], int(sys.argv[3])
def progress(done, of, what):
    global steps
    if what == stage:
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
if stage == "swap":
    real = Path.replace
    def replace(self, target):
        progress(0, 0, "swap")
        return real(self, target)
    Path.replace = replace
root = Path(sys.argv[1])
rebuild(root / "index.sqlite", root, progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "steps"),
    [("journal", 0), ("journal", 7), ("audit trail", 0), ("objects", 0), ("writing", 0), ("swap", 0), ("swap", 1)],
)
def test_killed_at_any_point_it_goes_on(tmp_path: Path, stage: str, steps: int) -> None:
    """A rebuild gets SIGKILL. Everything from before is still there, and the next rebuild restores all rows."""
    held = filled(tmp_path, 300)
    held.index.close()
    opened = open_checked_index(f"sqlite:///{tmp_path / 'index.sqlite'}", tmp_path, holds_objects=True).index
    for number in range(20):
        opened.holds.add(HoldKind.STUDY, f"1.2.{number}", reason="court", who="user:me")
    opened.close()
    before = tables_of(tmp_path / "index.sqlite")
    script = [sys.executable, "-c", _KILLED, str(tmp_path), stage, str(steps)]
    done = subprocess.run(script, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.returncode == -signal.SIGKILL
    if stage != "swap":
        assert tables_of(tmp_path / "index.sqlite") == before
    report = rebuild(tmp_path / "index.sqlite", tmp_path)
    assert report.clean
    after = tables_of(tmp_path / "index.sqlite")
    assert {name: rows for name, rows in before.items() if after[name] != rows} == {}
    assert not list(tmp_path.glob("index.sqlite.making*"))


@pytest.mark.slow
def test_written_down_before_anybody_is_told(tmp_path: Path) -> None:
    """Several processes write, and one of them is killed. Every change that they were told is done comes back."""
    held = filled(tmp_path, 3)
    held.index.close()
    url = f"sqlite:///{tmp_path / 'index.sqlite'}"
    open_checked_index(url, tmp_path, holds_objects=True).index.close()
    script = """
import sys
from pathlib import Path
from storage.index.opening import compact_journal, open_checked_index
root, name = Path(sys.argv[1]), sys.argv[2]
index = open_checked_index(f"sqlite:///{root / 'index.sqlite'}", root, holds_objects=True, replay=False).index
for number in range(10**6):
    index.holds.put_label(f"{name}-{number}", "1.2", who="user:me")
    print(f"{name}-{number}", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), name], stdout=subprocess.PIPE, text=True, env=environment
        )
        for name in ("a", "b")
    ]
    told: set[str] = set()
    for process in running:
        assert process.stdout is not None
        told |= {process.stdout.readline().strip() for _ in range(40)}
    for process in running:
        process.kill()
        assert process.stdout is not None
        told |= {line.strip() for line in process.stdout if line.endswith("\n")}
        process.wait()
        process.stdout.close()
    for part in tmp_path.glob("index.sqlite*"):
        part.unlink()
    assert rebuild(tmp_path / "index.sqlite", tmp_path).clean
    again = open_checked_index(url, tmp_path, holds_objects=True).index
    assert told <= {name for name, _ in again.holds.labels()}
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_power_failure_takes_nothing_that_was_told(tmp_path: Path, share: float) -> None:
    """The end of SQLite's log is lost, since commits are not synced. The journal is synced, and restores the
    changes."""
    root = tmp_path / "archive"
    root.mkdir()
    held = filled(root, 3)
    held.index.close()
    index = open_checked_index(f"sqlite:///{root / 'index.sqlite'}", root, holds_objects=True).index
    for number in range(30):
        index.holds.add(HoldKind.STUDY, f"1.2.{number}", reason="court", who="user:me")
    after = tmp_path / "after"
    shutil.copytree(root, after)
    index.close()
    log = after / "index.sqlite-wal"
    (after / "index.sqlite-shm").unlink()
    os.truncate(log, int(log.stat().st_size * share))
    again = open_checked_index(f"sqlite:///{after / 'index.sqlite'}", after, holds_objects=True)
    assert "older than the journal" in "".join(again.notes)
    assert len(again.index.holds.all()) == 30
    assert len(list(again.index.trail.records())) == 30
    assert again.index.holds.add(HoldKind.STUDY, "1.3", reason="court", who="user:me").key == 31
    again.index.close()


@pytest.mark.parametrize("lost", ["records of requests", "a decision that the journal lost too"])
def test_an_index_without_the_last_records_of_the_trail_gets_them(tmp_path: Path, lost: str) -> None:
    """The change journal does not hold these records. Formerly, new records took their numbers, and the chain was
    broken."""
    held = filled(tmp_path, 3)
    held.index.close()
    file = tmp_path / "index.sqlite"
    url = f"sqlite:///{file}"
    index = open_checked_index(url, tmp_path, holds_objects=True).index
    index.holds.put_label("first", "1.2", who="user:me")
    index.close()
    copy = file.read_bytes()
    (segment,) = (tmp_path / "journal").glob("changes-*.jsonl")
    size = segment.stat().st_size
    index = open_checked_index(url, tmp_path, holds_objects=True).index
    if lost == "records of requests":
        for _ in range(3):
            index.trail.append(TrailEntry("retrieve", "VIEWER", "study", ("1.2",)))
    else:
        index.holds.add(HoldKind.STUDY, "1.2", reason="court", who="user:me")
    index.close()
    for part in tmp_path.glob("index.sqlite*"):
        part.unlink()
    file.write_bytes(copy)
    os.truncate(segment, size)
    opened = open_checked_index(url, tmp_path, holds_objects=True)
    index, trail = opened.index, AuditTrail(opened.index, TrailJournal(tmp_path / "journal"))
    assert "the audit trail in the index ended at record 1" in "".join(opened.notes)
    assert len(index.holds.all()) == (lost != "records of requests")
    index.holds.put_label("later", "1.2", who="user:me")
    assert trail.broken() == ""
    assert list(TrailJournal(tmp_path / "journal").records()) == list(index.trail.records())
    index.close()
    assert open_checked_index(url, tmp_path, holds_objects=True).notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("journal", ["cut after the copy", "cut at the copy"])
def test_an_older_copy_is_refused_if_the_journal_lost_images_that_were_stored_since(
    made: FilledArchive, tmp_path: Path, journal: str
) -> None:
    """Formerly, the node started without a message, and did not find images that it had acknowledged."""
    copy = made.file.read_bytes()
    segment = max((made.root / "journal").glob("changes-*.jsonl"))
    size, ds = segment.stat().st_size, mammogram(breast(120, 100))
    with Node(made.quiet) as node:
        if journal == "cut after the copy":
            node.index.holds.put_label("later", "1.2", who="user:me")
            size = segment.stat().st_size
        receive(node, ds, tmp_path / "later.dcm")
    os.truncate(segment, size)
    made.drop_index()
    made.file.write_bytes(copy)
    for _ in range(2):
        with pytest.raises(IndexRefused, match=r"lost 1 image stored since; run .latent-pacs index rebuild"):
            Node(made.quiet)
    assert rebuilt(made).from_objects == 1
    with Node(made.quiet) as node:
        assert node.index.by_uid(str(ds.SOPInstanceUID)) is not None


# --- an index that is not that of the objects -------------------------------------------------------------------


def emptied(made: FilledArchive) -> None:
    made.drop_index()
    made.file.touch()


def blank(made: FilledArchive) -> None:
    made.drop_index()
    Index.open(f"sqlite:///{made.file}").close()


def foreign(made: FilledArchive) -> None:
    made.drop_index()
    elsewhere = made.root.parent / "elsewhere"
    elsewhere.mkdir()
    open_checked_index(f"sqlite:///{made.file}", elsewhere, holds_objects=False).index.close()


def no_database(made: FilledArchive) -> None:
    made.drop_index()
    made.file.write_bytes(b"something else" * 1000)


def another_database(made: FilledArchive) -> None:
    made.drop_index()
    connection = sqlite3.connect(made.file)
    connection.execute("CREATE TABLE thing (name TEXT)")
    connection.close()


WRONG: dict[str, Callable[[FilledArchive], None]] = {
    "missing": FilledArchive.drop_index,
    "an empty file": emptied,
    "without rows": blank,
    "another archive's": foreign,
    "no database": no_database,
    "another program's": another_database,
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_index_is_refused_by_everybody(made: FilledArchive, wrong: str) -> None:
    before = tables_of(made.file)
    objects = sorted((made.root / "objects").rglob("*"))
    WRONG[wrong](made)
    with pytest.raises(IndexRefused, match="index"):
        Node(made.settings)
    with pytest.raises(IndexRefused):
        open_for_command(made.settings)
    for command in (["scrub", "--full", "--remove-orphans"], ["status"], ["hold", "list"]):
        done = run(*command, "-c", str(made.config))
        assert done.returncode == 3, done.stdout
        assert "Traceback" not in done.stderr
        if wrong != "another program's":
            assert "latent-pacs index rebuild" in " ".join(done.stderr.split())
    assert sorted((made.root / "objects").rglob("*")) == objects
    assert rebuilt(made).clean
    assert tables_of(made.file) == before
    with Node(made.settings) as node:
        assert node.index.counts().by_state["verified"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["missing", "an empty file", "another archive's"])
def test_somebody_may_mean_it(made: FilledArchive, wrong: str) -> None:
    """With ``accept_empty_index``, the node begins a new archive. Holds and deletions are taken over from the trail,
    and the former journal is kept."""
    WRONG[wrong](made)
    with Node(made.settings, accept_empty_index=True) as node:
        assert node.index.by_uid(made.uids["verified"]) is None
        receive(node, mammogram(breast(100, 100)), made.root.parent / "new.dcm")
        assert sum(node.index.counts().by_state.values()) == 1
    assert list((made.root / "journal" / "superseded").rglob("changes-*"))
    with Node(made.settings) as node:
        assert sum(node.index.counts().by_state.values()) == 1


def test_an_older_copy_is_brought_up_to_the_journal(made: FilledArchive, tmp_path: Path) -> None:
    """Everything that happened after the copy was made is replayed, above all deletions, holds and amendments."""
    copy = tmp_path / "copy.sqlite"
    shutil.copy(made.file, copy)
    with Node(made.quiet) as node:
        services = node.archive
        receive(node, mammogram(breast(120, 100)), tmp_path / "later.dcm")
        held = next(one for one in node.index.holds.all())
        node.index.holds.release(held.key, reason="over", who="user:me")
        services.deletion.delete("image", made.uids["held"], reason="asked for", who="user:me")
        node.index.holds.add(HoldKind.STUDY, made.uids["study"], reason="court", who="user:me")
    after = tables_of(made.file)
    made.drop_index()
    shutil.copy(copy, made.file)
    with Node(made.quiet) as node:
        assert node.index.by_uid(made.uids["held"]) is None
        assert node.archive.trail.broken() == ""
    found = tables_of(made.file)
    assert {name for name in after if found[name] != after[name]} == set()


def test_an_older_copy_under_a_command(made: FilledArchive, tmp_path: Path) -> None:
    shutil.copy(made.file, tmp_path / "copy.sqlite")
    assert run("hold", "add", "--study", "1.2.3", "--reason", "court", "-c", str(made.config)).returncode == 0
    made.drop_index()
    shutil.copy(tmp_path / "copy.sqlite", made.file)
    assert "1.2.3" in run("hold", "list", "-c", str(made.config)).stdout


def test_an_index_of_a_journal_that_was_lost_begins_a_new_one(made: FilledArchive) -> None:
    before = tables_of(made.file)
    shutil.rmtree(made.root / "journal")
    open_for_command(made.settings).close()
    made.drop_index()
    assert rebuilt(made).clean
    after = tables_of(made.file)
    assert {name for name, rows in before.items() if after[name] != rows} == set()


def test_nothing_is_refused_where_nothing_is(tmp_path: Path) -> None:
    settings = load(configured(tmp_path))
    with pytest.raises(ConfigError, match="no index"):
        open_for_command(settings)
    with pytest.raises(ConfigError, match="is not there: is it right"):
        rebuild_index(settings, lambda *_: None)
    with Node(settings):
        pass
    with Node(settings):
        pass


# --- the journal is lost too ------------------------------------------------------------------------------------


def forget_journal(made: FilledArchive) -> None:
    made.drop_index()
    for segment in (made.root / "journal").glob("changes-*"):
        segment.unlink()


def test_objects_and_the_trail_alone_bring_images_back(made: FilledArchive) -> None:
    """Who sent the images, and when, is lost. Pixels, renditions, holds, labels, amendments, classes and tombstones
    come back."""
    before = tables_of(made.file)
    forget_journal(made)
    report = rebuilt(made)
    assert report.from_objects >= 3
    after = tables_of(made.file)
    for name in ("label", "tombstone", "class_label", "trail"):
        assert len(after[name]) == len(before[name]), name
    with Node(made.quiet) as node:
        assert {
            uid: node.index.by_uid(made.uids[uid]) is not None for uid in ("verified", "small", "held", "deleted")
        } == {
            "verified": True,
            "small": True,
            "held": True,
            "deleted": False,
        }
        verified = node.index.by_uid(made.uids["verified"])
        assert verified is not None
        assert verified.rendition is not None
        assert (verified.state.value, verified.held.form.value) == ("verified", "packed")  # type: ignore[union-attr]
        with node.originals.borrowed(verified.original_digest) as path:
            assert path.stat().st_size == verified.original_bytes
        assert len(node.index.holds.all()) == 2
        assert [one.undone for one in node.index.amendments.all()] == [False, False, True, False]


def cut_before_decisions(made: FilledArchive) -> None:
    """Cut off the journal at the first hold, amendment or tombstone."""
    (segment,) = (made.root / "journal").glob("changes-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    tables = (b'["+","hold"', b'["+","amendment"', b'["+","tombstone"')
    first = next(at for at, line in enumerate(lines) if any(table in line for table in tables))
    segment.write_bytes(b"".join(lines[:first]))


def test_decisions_that_a_cut_journal_lacks_are_taken_from_the_trail(made: FilledArchive) -> None:
    """Formerly, a rebuild undid holds, labels and amendments, and recovered a deleted image from quarantine."""
    with Node(made.quiet) as node:
        known = answers_of_people(node)
    cut_before_decisions(made)
    made.drop_index()
    assert rebuilt(made).decisions > 0
    with Node(made.quiet) as node:
        assert node.index.by_uid(made.uids["deleted"]) is None
        assert answers_of_people(node) == known
    made.drop_index()
    assert rebuilt(made).decisions == 0


def test_an_older_copy_takes_decisions_that_a_cut_journal_lacks_from_the_trail(
    made: FilledArchive, tmp_path: Path
) -> None:
    shutil.copy(made.file, tmp_path / "copy.sqlite")
    with Node(made.quiet) as node:
        node.index.holds.add(HoldKind.STUDY, "1.2.3", reason="court", who="user:test")
        node.index.holds.add(HoldKind.STUDY, "1.2.4", reason="court", who="user:test")
    segment = max((made.root / "journal").glob("changes-*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    last = next(at for at, line in enumerate(lines) if b'"1.2.4"' in line)
    segment.write_bytes(b"".join(lines[:last]))
    made.drop_index()
    shutil.copy(tmp_path / "copy.sqlite", made.file)
    with Node(made.quiet) as node:
        assert [one.value for one in node.index.holds.all()][-2:] == ["1.2.3", "1.2.4"]


def answers_of_people(node: Node) -> list[object]:
    """The holds, labels, amendments and tombstones of an archive, without the times of holds and deletions."""
    holds = [(one.key, one.kind, one.value, one.released_by) for one in node.index.holds.all(released=True)]
    with node.index.engine.connect() as connection:
        stones = connection.exec_driver_sql(
            "SELECT uid, original_uid, reason, deleted_by, rows_deleted, return_allowed_at IS NULL FROM tombstone"
        ).all()
    labels = (node.index.holds.labels(), node.index.classes.all())
    return [holds, labels, node.index.amendments.all(), sorted(map(tuple, stones))]


def rows_of(file: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def damage_a_line(made: FilledArchive) -> None:
    """Damage one line in the middle of the journal, which a rebuild then leaves out."""
    segment = max((made.root / "journal").glob("changes-*.jsonl"), key=lambda path: path.stat().st_size)
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = b"0" * 8 + lines[len(lines) // 2][8:]
    segment.write_bytes(b"".join(lines))


@pytest.mark.parametrize("hurt", [forget_journal, damage_a_line])
def test_a_rebuild_that_dies_before_its_journal_is_begun_needs_nobody(
    made: FilledArchive, hurt: Callable[[FilledArchive], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node that starts next begins the journal itself. Formerly, it refused the index as older than its journal."""
    hurt(made)

    def dies(self: ChangeJournal, *arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ChangeJournal, "begin", dies)
        with pytest.raises(KeyboardInterrupt):
            rebuilt(made)
    with Node(made.quiet) as node:
        assert node.index.by_uid(made.uids["verified"]) is not None
    before = tables_of(made.file)
    made.drop_index()
    assert rebuilt(made).clean
    after = tables_of(made.file)
    assert {name for name, rows in before.items() if after[name] != rows} == set()


def test_an_image_whose_original_is_gone_comes_back_from_its_base(made: FilledArchive) -> None:
    with Node(made.quiet) as node:
        held = node.index.by_uid(made.uids["verified"])
        assert held is not None
        assert held.held is not None
        node.store.path(held.held.object_digest).unlink()
    forget_journal(made)
    rebuilt(made)
    with Node(made.quiet) as node:
        found = node.index.by_uid(made.uids["verified"])
        assert found is not None
        assert (found.purged, found.state.value) == (True, "verified")
        assert found.rendition is not None
        assert found.rendition.derived_uid == held.rendition.derived_uid  # type: ignore[union-attr]


def test_a_scrub_leaves_what_a_rebuild_would_bring_back(made: FilledArchive, tmp_path: Path) -> None:
    """An original that no row names stays. An original whose UID is held or was deleted, and a file that is not DICOM,
    are moved to ``orphans/``."""
    with Node(made.quiet) as node:
        fresh = write(mammogram(breast(140, 100)), tmp_path / "fresh.dcm").read_bytes()
        known = write(
            mammogram(breast(140, 110), SOPInstanceUID=made.uids["small"]), tmp_path / "known.dcm"
        ).read_bytes()
        gone = write(mammogram(breast(99, 90), SOPInstanceUID=made.uids["deleted"]), tmp_path / "gone.dcm").read_bytes()
        digests = [node.store.put(data) for data in (fresh, known, gone, b"rubbish")]
        for digest in digests:
            os.utime(node.store.path(digest), (1e9, 1e9))
    done = run("scrub", "--full", "--remove-orphans", "-c", str(made.config), "--json")
    report = json.loads(done.stdout)
    assert (report["unclaimed"], report["orphans_moved"]) == (1, 3), report
    assert [(made.root / "objects" / one[:2] / one).exists() for one in digests] == [True, False, False, False]
    assert {one.name for one in (made.root / "orphans").glob("*/*/*")} == set(digests[1:])
    assert rebuilt(made).from_objects == 1
    assert json.loads(run("scrub", "--full", "-c", str(made.config), "--json").stdout)["unclaimed"] == 0


# --- damage -----------------------------------------------------------------------------------------------------


def test_damaged_pages_are_found(made: FilledArchive) -> None:
    """They are found at start, and by the scrub of a running node. Both messages name the rebuild, which repairs the
    index."""
    before, good = tables_of(made.file), made.file.read_bytes()
    chance, refused = random.Random(3), 0
    for _ in range(6):
        data = bytearray(good)
        page = chance.randrange(1, len(good) // 4096)
        data[page * 4096 : page * 4096 + 64] = chance.randbytes(64)
        made.file.write_bytes(data)
        if not sound(data, made):
            done = (run if refused else run_process)("serve", "-c", str(made.config))
            refused += 1
            assert (done.returncode, "index rebuild" in " ".join(done.stderr.split())) == (3, True)
            assert "Traceback" not in done.stderr
    assert refused >= 3
    assert rebuilt(made).clean
    assert tables_of(made.file) == before


def sound(data: bytearray, made: FilledArchive) -> bool:
    connection = sqlite3.connect(made.file)
    try:
        return connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()


def test_the_scrub_reports_damaged_pages(made: FilledArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(made.file)
    connection.executescript("PRAGMA writable_schema=ON")
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ix_patient_patient_id'").fetchone()[0]
    connection.close()
    data = bytearray(made.file.read_bytes())
    data[(root - 1) * 4096 + 3 : (root - 1) * 4096 + 5] = b"\0\0"  # an index that has lost its entries
    made.file.write_bytes(data)
    done = run("scrub", "--full", "-c", str(made.config))
    assert done.returncode == 1, done.stderr
    assert "the index is damaged" in done.stdout
    assert "latent-pacs index rebuild" in done.stdout


def test_a_damaged_line_of_the_journal_costs_only_itself(made: FilledArchive) -> None:
    (segment,) = (made.root / "journal").glob("changes-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if b'"label"' in line)
    before = tables_of(made.file)
    on_it = {name for name in before if f'"{name}"'.encode() in lines[at]}  # commits may share a line
    lines[at] = lines[at][:40] + b"#" + lines[at][41:]
    segment.write_bytes(b"".join(lines))
    made.drop_index()
    done = run("index", "rebuild", "-c", str(made.config), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["clean"], len(report["damaged_lines"])) == (1, False, 1)
    after = tables_of(made.file)
    assert {name for name in before if before[name] != after[name]} <= on_it
    assert rebuilt(made).clean, "the journal was begun anew"


def test_originals_whose_rows_are_on_a_damaged_line_are_found_among_the_objects(made: FilledArchive) -> None:
    """A compacted journal has the rows of many originals on one line."""
    open_for_command(made.settings).close()
    compact_journal(made.settings.storage.database_url, made.root)
    (segment,) = (made.root / "journal").glob("changes-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    (at,) = (number for number, line in enumerate(lines) if b'["+","original"' in line)
    lines[at] = b"#" * 8 + lines[at][8:]
    segment.write_bytes(b"".join(lines))
    columns = "instance_key, form, tier, object_digest, object_bytes"
    before = rows_of(made.file, f"SELECT {columns} FROM original ORDER BY 1")
    assert {form for _, form, *_ in before} == {"packed"}
    report = rebuilt(made)
    assert (report.clean, report.from_objects) == (False, len(before))
    assert rows_of(made.file, f"SELECT {columns} FROM original ORDER BY 1") == before


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["torn", "flipped", "no record"])
@pytest.mark.parametrize("kind", ["changes", "trail"])
def test_a_damaged_end_of_a_journal_does_not_stop_the_start(
    made: FilledArchive, harm: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    segment = sorted((made.root / "journal").glob(f"{kind}-*.jsonl"))[-1]
    data = segment.read_bytes()
    if harm == "torn":
        segment.write_bytes(data[:-25])
    elif harm == "flipped":
        segment.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    else:
        segment.write_bytes(data[:-30] + b"\xff" * 10 + data[-20:])
    before = tables_of(made.file)
    with Node(made.settings) as node:
        if not (kind == "trail" and harm == "flipped"):  # that one is a record, and the chain tells that it was changed
            assert node.archive.trail.broken() == ""
        receive(node, mammogram(breast(110, 100)), made.root.parent / "new.dcm")
    if not (kind == "trail" and harm in ("torn", "flipped")):
        assert "damaged bytes at the end" in caplog.text
    made.drop_index()
    rebuilt(made)
    after = tables_of(made.file)
    assert len(after["instance"]) == len(before["instance"]) + 1
    assert set(before["tombstone"]) == set(after["tombstone"])


def test_an_index_that_is_taken_away_from_a_node_is_noticed(made: FilledArchive) -> None:
    with Node(made.settings) as node:
        made.drop_index()
        statuses: list[int] = []
        path = write(mammogram(breast(130, 100)), made.root.parent / "nowhere.dcm")
        to = Archive(node, None).address  # type: ignore[arg-type]
        client.store([path], to, calling="MODALITY", each=lambda *sent: statuses.append(sent[1]))
        assert statuses
        assert statuses[0] & 0xF000 in (0xA000, 0xC000)


# --- versions ---------------------------------------------------------------------------------------------------


def test_a_newer_schema_is_refused(made: FilledArchive) -> None:
    connection = sqlite3.connect(made.file)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(NewerFormat, match="install a newer version"):
        Node(made.settings)


def test_a_newer_journal_is_refused(made: FilledArchive) -> None:
    from storage.objects.change_journal import _line

    (segment,) = (made.root / "journal").glob("changes-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[0] = _line({"format": 2, "archive": "x", "number": 0, "whole": True})
    segment.write_bytes(b"".join(lines))
    with pytest.raises(NewerFormat, match="install a newer version"):
        Node(made.settings)
    with pytest.raises(NewerFormat):
        rebuilt(made)


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Migrations with one more revision, as a later version would have."""
    from storage.index import connection

    folder = tmp_path / "migrations"
    shutil.copytree(connection.MIGRATIONS, folder)
    (folder / "versions" / "0002_next.py").write_text(
        "from alembic import op\nrevision, down_revision, branch_labels, depends_on = '0002', '0001', None, None\n"
        "def upgrade():\n    op.execute('CREATE TABLE later (key INTEGER PRIMARY KEY)')\n"
        "    op.execute('ALTER TABLE instance ADD COLUMN later TEXT')\n"
    )
    monkeypatch.setattr(connection, "MIGRATIONS", folder)
    return folder


_MIGRATED = """
import os, signal, sys
from pathlib import Path
from storage.index import connection
def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)
root, folder, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
connection.MIGRATIONS = folder
if point == "copying":
    Path.rename = die
elif point == "upgrading":
    revision = folder / "versions" / "0002_next.py"
    killed = "    import os; os.kill(os.getpid(), 9)\\n    op.execute('ALTER"
    revision.write_text(revision.read_text().replace("    op.execute('ALTER", killed))
else:
    connection._mark_changes = die
connection.migrate(connection.connect(f"sqlite:///{root / 'index.sqlite'}"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["copying", "upgrading", "upgraded"])
def test_a_migration_that_is_killed_is_repeated(made: FilledArchive, next_revision: Path, point: str) -> None:
    """The copy of the index is complete or has another name, and no row is lost."""
    before = tables_of(made.file)
    revision = next_revision / "versions" / "0002_next.py"
    code = revision.read_text()
    ran = subprocess.run([sys.executable, "-c", _MIGRATED, made.root, next_revision, point], check=False)
    assert ran.returncode == -signal.SIGKILL
    revision.write_text(code)
    with Node(made.settings) as node:
        assert node.index.counts().by_state["verified"] == 1
        node.index.holds.add(HoldKind.STUDY, "1.2.3", reason="court", who="user:me")
    copies = [path for path in made.root.glob("index.sqlite.before-0001-*") if path.suffix != ".partial"]
    assert copies
    assert all(tables_of(copy) == before for copy in copies)
    made.drop_index()
    rebuilt(made)
    assert sum("1.2.3" in hold for hold in tables_of(made.file)["hold"]) == 1


def test_an_older_schema_without_room_for_its_copy_is_left(made: FilledArchive, next_revision: Path) -> None:
    """Formerly, this ended with an exception, and each start left one more partial copy."""
    before = made.file.read_bytes()
    for _ in range(2):
        with (
            largest_file(1 << 17),
            pytest.raises(StoreFull, match="was not upgraded, since no copy of it can be written"),
        ):
            Index.open(f"sqlite:///{made.file}")
    assert made.file.read_bytes() == before
    assert not list(made.root.glob("index.sqlite.before-*"))


def test_an_older_schema_is_copied_and_brought_up_to_date(made: FilledArchive, next_revision: Path) -> None:
    before = tables_of(made.file)
    with Node(made.settings) as node:
        assert node.index.counts().by_state["verified"] == 1
    (copy,) = made.root.glob("index.sqlite.before-0001-*")
    assert tables_of(copy) == before
    connection = sqlite3.connect(made.file)
    assert connection.execute("SELECT count(*) FROM later").fetchone() == (0,)
    connection.close()
    with Node(made.settings):
        pass
    assert len(list(made.root.glob("index.sqlite.before-*"))) == 1


# --- the journal made small -------------------------------------------------------------------------------------

_COMPACTED = """
import os, signal, sys
from pathlib import Path
from storage.objects import change_journal as changes
from storage.index.opening import compact_journal
root, steps = Path(sys.argv[1]), int(sys.argv[2])
def counted(real):
    def step(*arguments, **named):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    return step
opening = changes.ChangeJournal.compact
def compact(self, *arguments):
    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    os.fsync, changes._line = counted(os.fsync), counted(changes._line)
    opening(self, *arguments)
changes.ChangeJournal.compact = compact
compact_journal(f"sqlite:///{root / 'index.sqlite'}", root)
"""


def with_outdated_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """An archive whose journal has many segments, with rows that have changed since. Returns the rows of its tables."""
    monkeypatch.setattr("storage.objects.change_journal._SEGMENT_BYTES", 4000)
    filled(folder, 20).index.close()
    index = open_checked_index(f"sqlite:///{folder / 'index.sqlite'}", folder, holds_objects=True).index
    for number in range(40):
        index.holds.add(HoldKind.STUDY, f"1.2.{number}", reason="court", who="user:me")
    for hold in index.holds.all(released=True):
        index.holds.release(hold.key, reason="over", who="user:me")
    index.close()
    assert len(list((folder / "journal").glob("changes-*"))) > 4
    return tables_of(folder / "index.sqlite")


@pytest.mark.slow
def test_a_compacted_journal_tells_the_same_in_fewer_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = with_outdated_lines(tmp_path, monkeypatch)
    shutil.copy(tmp_path / "index.sqlite", tmp_path / "copy")
    url = f"sqlite:///{tmp_path / 'index.sqlite'}"
    larger, smaller = compact_journal(url, tmp_path)
    assert smaller < 0.8 * larger
    assert len(list((tmp_path / "journal").glob("changes-*"))) == 1
    assert compact_journal(url, tmp_path) == (smaller, smaller)
    index = open_checked_index(url, tmp_path, holds_objects=True).index
    index.holds.add(HoldKind.STUDY, "1.3", reason="court", who="user:me")
    index.close()
    after = tables_of(tmp_path / "index.sqlite")
    assert len(after["hold"]) == len(before["hold"]) + 1
    (tmp_path / "index.sqlite").unlink()
    assert rebuild(tmp_path / "index.sqlite", tmp_path).clean
    assert tables_of(tmp_path / "index.sqlite") == after
    shutil.copy(tmp_path / "copy", tmp_path / "index.sqlite")  # it ends where the journal began anew
    open_checked_index(url, tmp_path, holds_objects=True).index.close()
    assert tables_of(tmp_path / "index.sqlite") == after


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 1, 3, 10, -1])
def test_a_compaction_that_is_killed_has_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """SIGKILL arrives while lines are written, before and after the rename, and while former segments are deleted; -1
    is the last."""
    before = with_outdated_lines(tmp_path, monkeypatch)
    counts = range(steps, steps + 1) if steps >= 0 else range(11, 60)
    killed = 0
    for count in counts:
        twin = tmp_path / f"twin-{count}"
        shutil.copytree(tmp_path / "journal", twin / "journal")
        shutil.copy(tmp_path / "index.sqlite", twin)
        done = subprocess.run(
            [sys.executable, "-c", _COMPACTED, str(twin), str(count)],
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=300,
        )
        killed += done.returncode == -signal.SIGKILL
        (twin / "index.sqlite").unlink()
        assert rebuild(twin / "index.sqlite", twin).clean
        assert tables_of(twin / "index.sqlite") == before
        compact_journal(f"sqlite:///{twin / 'index.sqlite'}", twin)
        assert len(list((twin / "journal").glob("changes-*.jsonl"))) == 1
        if done.returncode == 0:
            break
    else:
        assert steps >= 0
    assert killed


def test_the_command_that_compacts(made: FilledArchive) -> None:
    with Node(made.quiet):
        busy = run("index", "compact", "-c", str(made.config))
        assert (busy.returncode, "in use by another node" in busy.stderr) == (3, True)
    before = tables_of(made.file)
    done = run("index", "compact", "-c", str(made.config), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["bytes_after"] < report["bytes_before"]
    made.drop_index()
    assert rebuilt(made).clean
    assert tables_of(made.file) == before


# --- what SQLite says -------------------------------------------------------------------------------------------


def test_a_locked_index_is_one_sentence(tmp_path: Path) -> None:
    held = filled(tmp_path, 1)
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with held.index.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=50")
    with pytest.raises(IndexFault, match="another process keeps it locked"):
        held.index.holds.add(HoldKind.STUDY, "1.2", reason="court", who="user:me")
    other.close()
    assert held.index.holds.add(HoldKind.STUDY, "1.2", reason="court", who="user:me").key == 1
    held.index.close()


@pytest.mark.parametrize(
    "command", [["delete", "1.2.3", "--level", "study", "--yes"], ["hold", "add", "--study", "1.2.3"]]
)
def test_commands_on_a_damaged_index_say_one_sentence(made: FilledArchive, command: list[str]) -> None:
    data = bytearray(made.file.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 100] = random.Random(page).randbytes(100)
    made.file.write_bytes(data)
    done = run(*command, "--reason", "court", "-c", str(made.config))
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    assert "latent-pacs index rebuild" in " ".join(done.stderr.split())
