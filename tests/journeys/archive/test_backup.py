"""Proves the procedure of docs/OPERATIONS.md: back up while stores go on, lose the archive, restore it, and compare
everything.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.app import Node, make_backup, restore_backup, stores_of
from node.archive.index_opening import open_for_command
from node.cli.times import time_text
from node.config import load
from node.dimse import client
from storage.backup.create import Backup, BackupReport
from storage.errors import BackupRefused, ConfigError, NewerFormat
from storage.objects.backup_manifest import Entry, Manifest, read_manifest, write_manifest
from storage.objects.store import ObjectStore
from storage.objects.trail_journal import TrailJournal
from storage.records import HoldKind, Tier
from tests.conftest import Archive, wait_for
from tests.support.commands import run
from tests.support.everything import fill, receive, tables_of
from tests.support.filled_archive import FilledArchive, answers, configured
from tests.support.paths import ROOT
from tests.support.samples import breast, mammogram


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> FilledArchive:
    folder = tmp_path_factory.mktemp("everything")
    config = configured(folder)
    with Node(load(config)) as node:
        uids = fill(node, folder)
        reports = node.store.root / "reports"
        reports.mkdir(exist_ok=True)
        (reports / "audit-x.json").write_text("{}")
    return FilledArchive(config, uids)


@pytest.fixture
def made(original: FilledArchive, tmp_path: Path) -> FilledArchive:
    """A copy of the archive ``original``, for one test."""
    return original.twin(tmp_path)


def back_up(made: FilledArchive, to: Path) -> BackupReport:
    index = open_for_command(made.settings)
    try:
        return make_backup(made.settings, index, stores_of(made.settings, index, ObjectStore(made.root)), to)
    finally:
        index.close()


def contents(made: FilledArchive) -> dict[str, bytes]:
    """Every object, journal and report."""
    found = [path for name in ("objects", "journal", "reports") for path in (made.root / name).rglob("*")]
    return {
        str(path.relative_to(made.root)): path.read_bytes()
        for path in found
        if path.is_file() and not path.name.endswith("lock")
    }


@contextmanager
def stores_going_on(node: Node, folder: Path) -> Iterator[list[str]]:
    """Store images and put labels while the archivist encodes and packs. Returns the acknowledged UIDs."""
    acknowledged: list[str] = []
    ended = threading.Event()

    def keep_storing() -> None:
        while not ended.is_set():
            ds = mammogram(breast(64, 64 + len(acknowledged)))
            receive(node, ds, folder / "sent.dcm")
            acknowledged.append(str(ds.SOPInstanceUID))
            node.index.holds.put_label(f"n{len(acknowledged)}", "1.2", who="user:me")

    storing = threading.Thread(target=keep_storing)
    storing.start()
    try:
        yield acknowledged
    finally:
        ended.set()
        storing.join()


def lose_everything(made: FilledArchive) -> None:
    shutil.rmtree(made.root)


@pytest.mark.slow
def test_the_whole_drill(made: FilledArchive, tmp_path: Path) -> None:
    """Make a backup by the commands, lose the root, and restore: every row, every object and every answer comes
    back."""
    rows = tables_of(made.file)
    empty = {name for name, found in rows.items() if not found}
    assert empty <= {"garbage"}, "a table without a row proves nothing"  # the node has emptied this table at its start
    dest, config = tmp_path / "backup", ("-c", str(made.config))
    with Node(made.settings) as node, stores_going_on(node, tmp_path):
        done = run("backup", "create", str(dest), *config, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["clean"]
        assert "clean" in run("backup", "verify", str(dest)).stdout
    (tmp_path / "twin").mkdir()
    said = answers(made.twin(tmp_path / "twin"))
    assert json.loads(run("backup", "create", str(dest), *config, "--json").stdout)["clean"]
    again = json.loads(run("backup", "create", str(dest), *config, "--json").stdout)
    assert (again["copied"], again["clean"]) == (0, True)
    before, rows = contents(made), tables_of(made.file)
    lose_everything(made)
    assert "clean" in run("backup", "verify", str(dest)).stdout
    restored = run("backup", "restore", str(dest), *config)
    assert restored.returncode == 0, restored.stderr
    assert "the index is sound" in restored.stdout
    after = tables_of(made.file)
    assert {name: found for name, found in after.items() if found != rows[name]} == {}
    held = contents(made)
    assert {name for name in before if held.get(name) != before[name]} == set()
    assert answers(made) == said
    refused = run("backup", "restore", str(dest), *config)
    assert (refused.returncode, "holds objects" in refused.stderr) == (3, True)


def test_a_restore_says_that_later_deletions_are_not_in_the_backup(made: FilledArchive, tmp_path: Path) -> None:
    """Formerly, images that were deleted after the backup came back without a message."""
    dest, config = tmp_path / "backup", ("-c", str(made.config))
    back_up(made, dest)
    newest = TrailJournal(made.root / "journal").last()
    assert newest is not None
    for hold in json.loads(run("hold", "list", *config, "--json").stdout):
        run("hold", "release", str(hold["key"]), "--reason", "over", *config)
    deleted = run("delete", made.uids["small"], "--level", "image", "--reason", "wrong patient", "--yes", *config)
    assert deleted.returncode == 0, deleted.stderr
    lose_everything(made)
    restored = run("backup", "restore", str(dest), *config)
    assert restored.returncode == 0, restored.stderr
    assert f"its audit trail ends at {time_text(newest.at)}: " in restored.stdout
    assert "images that were deleted later are back. Repeat these deletions" in restored.stdout
    shutil.rmtree(made.root)
    told = json.loads(run("backup", "restore", str(dest), *config, "--json").stdout)
    assert told["trail_ends"] == newest.at


def commands_to_move() -> dict[str, list[str]]:
    """The lines of the ``sh`` blocks under "Move the archive", by their first word."""
    part = (
        (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8").split("\n## Move the archive\n")[1].split("\n## ")[0]
    )
    found: dict[str, list[str]] = {}
    for line in "".join(re.findall(r"^```sh\n(.*?)^```$", part, re.M | re.S)).splitlines():
        found.setdefault(line.split()[0], []).append(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cp", "tar"])
def test_an_archive_moves(made: FilledArchive, tmp_path: Path, receiver: client.Receiver, way: str) -> None:
    """By the commands of docs/OPERATIONS.md, with a link that a killed node left, or without the folders that a node
    makes again."""
    back_up(made, tmp_path / "backup")
    (made.root / "lent" / f"elsewhere+1+{'ab' * 16}").hardlink_to(next(made.root.glob("objects/*/*")))
    before, rows = contents(made), tables_of(made.file)
    for folder in ("srv", "disk"):
        (tmp_path / folder).mkdir()
    places = {"/var/lib/latent-pacs": made.root.parent, "/srv/latent-pacs": tmp_path / "srv"}
    places["/mnt/disk"] = tmp_path / "disk"
    place = re.compile("|".join(places))
    for line in commands_to_move()[way]:
        here = place.sub(lambda documented: str(places[documented[0]]), line)
        subprocess.run(shlex.split(here), check=True, timeout=300)
    made.root.rename(tmp_path / "former")
    moved = FilledArchive(configured(tmp_path / {"cp": "disk", "tar": "srv"}[way]), made.uids)
    for name in ("spool", "lent", "rendered"):
        if way == "tar":
            shutil.rmtree(moved.root / name, ignore_errors=True)
    assert contents(moved) == before
    assert tables_of(moved.file) == rows
    for line in [*commands_to_move()["latent-pacs"], "latent-pacs jobs run reverify"]:
        done = run(*shlex.split(line)[1:], "--config", str(moved.config))
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert back_up(moved, tmp_path / "backup").copied == 0
    with Node(moved.quiet) as node:
        held = node.index.by_uid(made.uids["verified"])
        assert held is not None
        wanted = client.image_identifier(held.study_instance_uid, held.series_instance_uid, held.sop_instance_uid)
        to = Archive(node, receiver).address
        classes = [held.sop_class_uid]
        answer = client.get(wanted, to, calling="MODALITY", sop_classes=classes, receiver=receiver)
        assert (answer.Status, list(receiver.received)) == (0, [made.uids["verified"]])


@pytest.mark.slow
def test_while_stores_and_packing_go_on(tmp_path: Path) -> None:
    """A backup holds everything that was acknowledged before it began, and is consistent."""
    config = configured(tmp_path)
    with Node(load(config)) as node, stores_going_on(node, tmp_path) as acknowledged:
        wait_for(lambda: acknowledged, what="a first image")
        for _ in range(4):
            before = list(acknowledged)
            done = make_backup(load(config), node.index, {"hot": node.store}, tmp_path / "backup")
            assert done.clean
            assert Backup(tmp_path / "backup").verify().clean
    lose_everything(FilledArchive(config, {}))
    assert restore_backup(load(config), tmp_path / "backup").clean
    settings = FilledArchive(config, {}).quiet
    with Node(settings) as node:
        assert before
        for uid in before:
            held = node.index.by_uid(uid)
            assert held is not None
            assert held.held is not None
            assert node.store.read(held.held.object_digest)


_KILLED = """
import os, signal, sys
from pathlib import Path
from node.app import make_backup, restore_backup, stores_of
from node.archive.index_opening import open_for_command
from node.config import load
from storage.backup import create
from storage.objects.store import ObjectStore
what, config, folder, steps = sys.argv[1], load(Path(sys.argv[2])), Path(sys.argv[3]), int(sys.argv[4])
def progress(done, of):
    if done == (of if steps == -1 else steps):
        os.kill(os.getpid(), signal.SIGKILL)
def late(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if steps == -2:
    create.write_manifest = late
if steps == -3:
    ObjectStore.delete = late
if what == "restore":
    restore_backup(config, folder, progress)
else:
    index = open_for_command(config)
    make_backup(config, index, stores_of(config, index, ObjectStore(config.storage.root)), folder, progress)
"""


def killed(what: str, made: FilledArchive, dest: Path, steps: int) -> None:
    command = [sys.executable, "-c", _KILLED, what, str(made.config), str(dest), str(steps)]
    done = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("steps", [0, 2, -1, -2, -3])
def test_killed_backup_leaves_the_former_valid_and_goes_on(made: FilledArchive, tmp_path: Path, steps: int) -> None:
    """SIGKILL arrives while objects are copied, before the manifest is written, and before old files are removed."""
    dest = tmp_path / "backup"
    back_up(made, dest)
    former = read_manifest(dest)
    index = open_for_command(made.settings)
    index.holds.add(HoldKind.STUDY, "1.2.3", reason="later", who="user:me")
    index.close()
    killed("backup", made, dest, steps)
    assert Backup(dest).verify().clean
    assert (read_manifest(dest) == former) is (steps != -3)
    assert back_up(made, dest).clean
    rows = tables_of(made.file)
    lose_everything(made)
    assert restore_backup(made.settings, dest).clean
    assert tables_of(made.file) == rows
    assert not list((dest / "spool").iterdir())


@pytest.mark.slow
def test_first_backup_killed_is_no_backup_and_goes_on(made: FilledArchive, tmp_path: Path) -> None:
    dest = tmp_path / "backup"
    killed("backup", made, dest, 3)
    with pytest.raises(BackupRefused, match="no complete backup"):
        Backup(dest).verify()
    done = back_up(made, dest)
    assert (done.clean, done.copied) == (True, len({one.digest for one in read_manifest(dest).objects}) - 3)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, -1])
def test_killed_restore_goes_on(made: FilledArchive, tmp_path: Path, steps: int) -> None:
    dest, rows = tmp_path / "backup", {}
    back_up(made, dest)
    rows = tables_of(made.file)
    lose_everything(made)
    killed("restore", made, dest, steps)
    with pytest.raises(ConfigError, match="was interrupted"):
        open_for_command(made.settings)
    assert restore_backup(made.settings, dest).clean
    assert tables_of(made.file) == rows


def test_damage_in_the_backup_is_named_and_repaired(made: FilledArchive, tmp_path: Path) -> None:
    dest = tmp_path / "backup"
    back_up(made, dest)
    objects = ObjectStore(dest)
    damaged, gone = sorted({one.digest for one in read_manifest(dest).objects})[:2]
    flip(objects.path(damaged))
    objects.delete(gone)
    done = run("backup", "verify", str(dest))
    assert done.returncode == 1
    assert f"object {damaged} is damaged" in done.stdout
    assert f"object {gone} is missing" in done.stdout
    (tmp_path / "other").mkdir()
    other = FilledArchive(configured(tmp_path / "other"), made.uids)
    report = run("backup", "restore", str(dest), "-c", str(other.config), "--json")
    assert report.returncode == 1
    told = json.loads(report.stdout)
    assert set(told["missing"]) == {f"object {damaged}", f"object {gone}"}
    assert told["objects"] == len(read_manifest(dest).objects) - 2
    assert back_up(made, dest).copied == 2
    assert Backup(dest).verify().clean


def test_a_damaged_index_in_the_backup_is_made_anew(made: FilledArchive, tmp_path: Path) -> None:
    dest, rows = tmp_path / "backup", tables_of(made.file)
    back_up(made, dest)
    [index] = [one for one in read_manifest(dest).files if one.name == "index.sqlite"]
    flip(ObjectStore(dest / "state").path(index.digest))
    lose_everything(made)
    restored = restore_backup(made.settings, dest)
    assert (restored.rebuilt, restored.missing) == (True, ["index.sqlite"])
    assert tables_of(made.file) == rows


def test_damage_in_the_archive_is_told_and_an_earlier_copy_is_kept(made: FilledArchive, tmp_path: Path) -> None:
    dest, store = tmp_path / "backup", ObjectStore(made.root)
    back_up(made, dest)
    first, second = sorted({one.digest for one in read_manifest(dest).objects})[:2]
    store.delete(first)
    store.path(second).write_bytes(b"short")
    again = back_up(made, dest)
    assert (again.missing, sorted(again.only_here), again.clean, again.finished) == ([], [first, second], False, True)
    told = run("backup", "create", str(dest), "-c", str(made.config))
    assert told.returncode == 1
    assert f"object {first} is missing or damaged in the archive, and this backup has it" in told.stdout
    assert Backup(dest).verify().clean
    other = back_up(made, tmp_path / "other")
    assert (sorted(other.missing), other.clean, other.finished) == ([first, second], False, True)
    found = Backup(tmp_path / "other").verify().findings
    assert sorted(found) == [f"object {one} is not in it: the archive did not have it whole" for one in (first, second)]


@pytest.mark.slow
def test_both_stores(tmp_path: Path) -> None:
    """Originals in originals.path are in the backup, and are restored to that folder."""
    config = configured(tmp_path)
    raw = yaml.safe_load(config.read_text()) | {"originals": {"path": str(tmp_path / "cold")}}
    config.write_text(yaml.safe_dump(raw))
    made = FilledArchive(config, {})
    with Node(load(config)) as node:
        ds = mammogram()
        receive(node, ds, tmp_path / "sent.dcm")
        wait_for_cold(node, str(ds.SOPInstanceUID))
    before = {path.name: path.read_bytes() for path in (tmp_path / "cold/objects").rglob("*") if path.is_file()}
    assert before
    assert back_up(made, tmp_path / "backup").clean
    lose_everything(made)
    shutil.rmtree(tmp_path / "cold")
    plain = tmp_path / "plain.yaml"
    plain.write_text(yaml.safe_dump(raw | {"originals": {"path": ""}}))
    with pytest.raises(BackupRefused, match=r"originals\.path"):
        restore_backup(load(plain), tmp_path / "backup")
    assert restore_backup(load(config), tmp_path / "backup").clean
    assert {path.name: path.read_bytes() for path in (tmp_path / "cold/objects").rglob("*") if path.is_file()} == before


def test_a_scrub_copies_what_is_damaged_from_the_replica(made: FilledArchive, tmp_path: Path) -> None:
    raw = yaml.safe_load(made.config.read_text())
    raw["jobs"]["replicate"] = {"to": str(tmp_path / "backup")}
    made.config.write_text(yaml.safe_dump(raw))
    store, config = ObjectStore(made.root), ("-c", str(made.config))
    listed = json.loads(run("jobs", "list", *config, "--json").stdout)
    assert [one["when"] for one in listed if one["name"] == "replicate"] == ["daily 01:30"]
    assert run("replicate", *config).returncode == 0
    damaged, gone = sorted({one.digest for one in read_manifest(tmp_path / "backup").objects})[:2]
    whole = store.read(damaged), store.read(gone)
    flip(store.path(damaged))
    store.delete(gone)
    report = json.loads(run("scrub", "--full", *config, "--json").stdout)
    found = {one["digest"]: one["action"] for one in report["findings"]}
    assert (found[damaged], found[gone]) == ("recovered", "recovered")
    assert (store.read(damaged), store.read(gone)) == whole


def test_an_object_that_goes_meanwhile_is_in_the_backup(made: FilledArchive, tmp_path: Path) -> None:
    """An original is packed after the state was copied, and before its object is."""
    index = open_for_command(made.settings)
    stores = stores_of(made.settings, index, ObjectStore(made.root))
    gone: dict[str, bytes] = {}

    def progress(done: int, of: int) -> None:
        if not gone and done == 1:
            gone.update({digest: stores["hot"].read(digest) for digest in list(stores["hot"].digests())[2:4]})
            for digest in gone:
                ObjectStore(made.root).delete(digest)

    done = make_backup(made.settings, index, stores, tmp_path / "backup", progress)
    index.close()
    assert done.clean
    held = ObjectStore(tmp_path / "backup")
    assert {digest: held.read(digest) for digest in gone} == gone
    assert Backup(tmp_path / "backup").verify().clean
    assert not list((made.root / "lent").iterdir())


def test_replicate_is_a_job(made: FilledArchive, tmp_path: Path) -> None:
    config = ("-c", str(made.config))
    done = run("replicate", str(tmp_path / "backup"), *config, "--json")
    assert (done.returncode, json.loads(done.stdout)["clean"]) == (0, True), done.stderr
    assert Backup(tmp_path / "backup").verify().clean
    assert json.loads(run("jobs", "history", "replicate", *config, "--json").stdout)[0]["state"] == "done"
    shutil.rmtree(tmp_path / "backup")
    unmounted = run("replicate", str(tmp_path / "backup"), *config)
    assert (unmounted.returncode, "is its disk mounted" in unmounted.stderr) == (1, True)
    nowhere = run("replicate", *config)
    assert (nowhere.returncode, "name a peer or a folder" in nowhere.stderr) == (2, True)


def test_what_is_refused(made: FilledArchive, tmp_path: Path) -> None:
    for inside in (made.root / "backup", tmp_path):
        with pytest.raises(BackupRefused, match="contains the other"):
            back_up(made, inside)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("x")
    with pytest.raises(BackupRefused, match="is not a backup and holds"):
        back_up(made, tmp_path / "full")
    dest = tmp_path / "backup"
    back_up(made, dest)
    lines = (dest / "manifest.jsonl").read_text()
    (dest / "manifest.jsonl").write_text(lines.replace('"format":1', '"format":2'))
    with pytest.raises(NewerFormat):
        Backup(dest).verify()
    for name in ("manifest.jsonl", "manifest-copy.jsonl"):
        (dest / name).write_text(lines[:-200])
    with pytest.raises(BackupRefused, match="damaged"):
        Backup(dest).verify()
    (dest / "manifest.jsonl").write_text(lines)
    (tmp_path / "b").mkdir()
    other = configured(tmp_path / "b")
    with Node(load(other)):
        pass
    with pytest.raises(BackupRefused, match="another archive"):
        back_up(FilledArchive(other, {}), dest)


@pytest.mark.parametrize("name", ["../index.sqlite", "/etc/passwd", "journal/../../x", "objects/ab/cd", "journal", ""])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, Manifest("a", 1, "2026-01-01", (), (Entry("ab" * 32, 1, name),), ()))
    with pytest.raises(BackupRefused, match="does not belong to an archive"):
        read_manifest(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def wait_for_cold(node: Node, uid: str) -> None:
    def moved() -> Any:
        held = node.index.by_uid(uid)
        return held is not None and held.held is not None and held.held.tier is Tier.COLD

    wait_for(moved, what="the move to the cold store")
