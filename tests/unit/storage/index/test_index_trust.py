"""Proves that an index that cannot be trusted is distinguished from a sound one, with the reason."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any

import pytest
from sqlalchemy import select, update

from storage.errors import IndexFault, IndexLost, IndexRefused, StoreFull
from storage.index import Index, index_trust
from storage.index.connection import connect, writing
from storage.index.index_trust import IndexStanding, damage_of, quick_check
from storage.index.opening import open_checked_index
from storage.index.rebuild import rebuild
from storage.index.tables import label
from storage.objects.change_journal import ChangeJournal
from storage.records import InstanceState
from tests.support.holdings import filled
from tests.support.index_rows import new_instance

WHO = {"who": "user:me"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(file: Path, tmp_path: Path) -> Iterator[Index]:
    """The index of an archive, with one label."""
    opened = open_checked_index(f"sqlite:///{file}", tmp_path, holds_objects=False).index
    opened.holds.put_label("teaching", "1.2", **WHO)
    yield opened
    opened.close()


def cut(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at : at + 600] = b"\xff" * 600
    file.write_bytes(data)


# --- damaged pages ------------------------------------------------------------------------------------------------


def test_a_sound_index_has_no_damage(index: Index, file: Path, tmp_path: Path) -> None:
    assert damage_of(file, "quick_check") == damage_of(file, "integrity_check") == []
    assert (IndexStanding(index, tmp_path).doubt(), IndexStanding(index, tmp_path).damage()) == ("", [])
    quick_check(file)
    quick_check(tmp_path / "not there")


@pytest.mark.parametrize("at", [0, 100, 4096 * 3])
def test_damage_is_found_wherever_it_is(index: Index, file: Path, at: int) -> None:
    index.close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    cut(file, at)
    assert damage_of(file, "integrity_check")
    with pytest.raises(IndexRefused, match=rf"the index {file} is damaged \(.+\); run `latent-pacs index rebuild`"):
        quick_check(file)


def test_an_index_that_is_not_there_is_no_damaged_one(file: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        damage_of(file, "quick_check")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_CANTOPEN, "look whether .* at their rights"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "look at the rights of its file and folder"),
    ],
)
def test_an_index_that_cannot_be_opened_is_one_sentence(
    file: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    """The error is that of a process that may not read the file or write its folder. The user who runs the tests may be
    root."""

    def forbidden(*_: Any, **__: Any) -> None:
        failure = sqlite3.OperationalError("unable to open database file")
        failure.sqlite_errorcode = code
        raise failure

    file.write_bytes(b"x")
    monkeypatch.setattr(sqlite3, "connect", forbidden)
    with pytest.raises(IndexFault, match=f"the index {file} cannot be used .*: {advice}"):
        quick_check(file)


def test_an_error_with_an_extended_code_gets_the_advice_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is SQLITE_READONLY_DIRECTORY, which means that the index's folder may not be written."""
    error = sqlite3.OperationalError("attempt to write a readonly database")
    error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DIRECTORY

    def broken(*_: object) -> list[str]:
        raise error

    file = tmp_path / "index.sqlite"
    file.write_bytes(b"x")
    monkeypatch.setattr(index_trust, "damage_of", broken)
    with pytest.raises(IndexFault, match="look at the rights of its file and folder"):
        quick_check(file)
    error.sqlite_errorcode = sqlite3.SQLITE_ERROR
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        quick_check(file)


@pytest.mark.parametrize("free", [0, 1 << 30])
def test_a_disk_that_is_full_is_no_damage_and_a_broken_one_is(
    index: Index, file: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """SQLite reports both as the same error, because it cannot create its shared-memory file."""
    index.close()
    real = sqlite3.connect

    def broken(*arguments: Any, **options: Any) -> Any:
        failure = sqlite3.OperationalError("disk I/O error")
        failure.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise failure

    usage = shutil.disk_usage(file.parent)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(sqlite3, "connect", broken)
    if free:
        assert damage_of(file, "quick_check") == ["disk I/O error"]
    else:
        with pytest.raises(StoreFull, match=f"the disk of the index {file} is too full to open it"):
            damage_of(file, "quick_check")
    monkeypatch.setattr(sqlite3, "connect", real)
    assert damage_of(file, "quick_check") == []


# --- the journal beside it ----------------------------------------------------------------------------------------


def test_an_index_of_another_archive_is_doubted(index: Index, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = open_checked_index(
        f"sqlite:///{tmp_path / 'other/index.sqlite'}", tmp_path / "other", holds_objects=False
    ).index
    assert IndexStanding(other, tmp_path).doubt() == "it is the index of another archive"
    other.close()


def test_an_index_without_its_journal_is_doubted(index: Index, tmp_path: Path) -> None:
    said = "it is empty, or was not opened with the journal of the objects"
    assert IndexStanding(index, tmp_path / "elsewhere").doubt() == said
    empty = Index.open(f"sqlite:///{tmp_path / 'new.sqlite'}")
    assert IndexStanding(empty, tmp_path).doubt() == said
    empty.close()


def test_an_index_that_ends_before_its_journal_is_doubted(index: Index, file: Path, tmp_path: Path) -> None:
    """Objects that such an index does not know are not orphans."""
    index.close()
    older = tmp_path / "older.sqlite"
    shutil.copyfile(file, older)
    again = open_checked_index(f"sqlite:///{file}", tmp_path, holds_objects=False).index
    last = ChangeJournal(tmp_path / "journal").last()
    again.holds.put_label("later", "1.2", **WHO)
    again.close()
    copy = Index.open(f"sqlite:///{older}")
    assert IndexStanding(copy, tmp_path).doubt() == f"it ends at change {last}, and the journal at {last + 1}"
    copy.close()


def test_what_another_process_commits_meanwhile_is_not_missed_in_the_journal(
    index: Index, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by benchmarks.load. Formerly, a command that started beside a busy node wrote the whole journal again."""
    url, real = f"sqlite:///{file}", ChangeJournal.last
    of_node = connect(url)  # it has no follower, and cannot journal while the journal is locked

    def while_the_node_commits(journal: ChangeJournal) -> int:
        with writing(of_node) as connection:
            connection.execute(update(label).values(name=label.c.name + "."))
        return real(journal)

    segments = sorted((tmp_path / "journal").glob("changes-*"))
    monkeypatch.setattr(ChangeJournal, "last", while_the_node_commits)
    opened = open_checked_index(url, tmp_path, holds_objects=False, replay=False)
    monkeypatch.undo()
    opened.index.close()
    of_node.dispose()
    assert opened.notes == ()
    assert sorted((tmp_path / "journal").glob("changes-*")) == segments
    assert not (tmp_path / "journal" / "superseded").exists()


@pytest.mark.parametrize("segment", ["the same", "changes-000000999999.jsonl"], ids=["same segment", "new segment"])
def test_a_line_that_a_killed_command_wrote_in_part_does_not_damage_the_next_one(
    index: Index, file: Path, tmp_path: Path, segment: str
) -> None:
    """Formerly, the node's next change was appended to the partial line and acknowledged, and could not be read."""
    [first] = (tmp_path / "journal").glob("changes-*")
    with (first if segment == "the same" else first.with_name(segment)).open("ab") as torn:
        torn.write(b'0a1b2c3d {"number":3,"rows":[["+","lab')
    index.holds.put_label("court", "1.2", **WHO)
    index.close()
    made = rebuild(tmp_path / "other.sqlite", tmp_path)
    assert made.damaged_lines == []
    assert made.rows["label"] == 2


def test_an_index_whose_objects_are_on_a_disk_that_is_not_mounted_is_refused(tmp_path: Path) -> None:
    """The index is in another place (storage.database). Objects that a node stores at the mount point are hidden once
    the disk is mounted."""
    root = tmp_path / "archive"
    root.mkdir()
    held = filled(root, 1)
    held.index.close()
    url = f"sqlite:///{(root / 'index.sqlite').rename(tmp_path / 'index.sqlite')}"
    open_checked_index(url, root, holds_objects=True).index.close()
    root.rename(tmp_path / "mounted elsewhere")
    root.mkdir()
    said = "names 3 objects, and storage.root .* has no object and no journal: is its disk mounted"
    for holds_objects in (False, True):  # there may be a cold store, too
        with pytest.raises(IndexRefused, match=said):
            open_checked_index(url, root, holds_objects=holds_objects)
    assert list((root / "journal").glob("*.jsonl")) == []
    open_checked_index(url, root, holds_objects=False, accept_empty=True).index.close()
    assert len(list((root / "journal").glob("changes-*.jsonl"))) == 1


def test_a_database_with_a_log_of_its_own_needs_no_change_journal(tmp_path: Path) -> None:
    """An index in memory stands for such a database: only the audit trail is written beside the objects, and the index
    is not doubted."""
    with pytest.raises(IndexRefused, match="is empty or missing, but there are objects or a journal"):
        open_checked_index("sqlite://", tmp_path, holds_objects=True)
    opened = open_checked_index("sqlite://", tmp_path, holds_objects=False)
    assert opened.notes == ()
    opened.index.holds.put_label("teaching", "1.2", **WHO)
    standing = IndexStanding(opened.index, tmp_path)
    assert (standing.doubt(), standing.damage()) == ("", [])
    assert {path.name for path in (tmp_path / "journal").iterdir()} == {"lock", "trail-000000000001.jsonl"}
    opened.index.close()


def test_a_change_that_was_committed_while_the_index_was_rebuilt_is_not_told_as_done(
    index: Index, file: Path, tmp_path: Path
) -> None:
    """The change is only in the former index. Formerly, the new index had used its number, so that the change was
    acknowledged and not journalled."""
    written: list[bool] = []
    began, refused = threading.Event(), threading.Event()

    def write() -> None:
        began.set()
        with pytest.raises(IndexLost, match="removed or replaced"):
            index.classes.put({"1.2.3": "cancer"}, who="user:me")
        refused.set()

    writer = threading.Thread(target=write)

    def take_in(_: Index) -> int:
        writer.start()
        began.wait()
        with index.engine.connect() as connection:
            while not connection.exec_driver_sql("SELECT count(*) FROM class_label").scalar():
                connection.rollback()
        written.append(True)
        return 1  # the journal is begun anew, with the next number

    rebuild(file, tmp_path, take_in_objects=take_in)
    writer.join()
    assert written
    assert refused.is_set()
    index.close()
    again = open_checked_index(f"sqlite:///{file}", tmp_path, holds_objects=False)
    assert (again.index.classes.all(), again.notes) == ([], ())
    again.index.close()


def test_what_was_claimed_while_the_journal_could_not_be_written_is_free(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formerly, the image waited 15 minutes until the lease expired, and the attempt counted."""

    def refuse(*_: object) -> None:
        raise StoreFull("no room")

    index.add(new_instance("1.2.3"))
    with monkeypatch.context() as patch:
        patch.setattr(ChangeJournal, "append", refuse)
        with pytest.raises(StoreFull):
            index.claim("me", 900)
    claim = index.claim("me", 900)
    assert claim is not None
    assert claim.attempts == 1
    assert index.finish(claim, InstanceState.EXACT)
    with monkeypatch.context() as patch:
        patch.setattr(ChangeJournal, "append", refuse)
        with pytest.raises(StoreFull):
            index.originals.claim_to_pack("me", 900)
    assert index.originals.claim_to_pack("me", 900) is not None


# --- errors of the database ---------------------------------------------------------------------------------------


def test_a_write_to_a_read_only_index_is_store_full(index: Index) -> None:
    """The peer is told to send again later, and nothing is stored."""
    with index.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(StoreFull, match=r"the index cannot be written: .*readonly database"):
        index.holds.put_label("later", "1.2", **WHO)
    with index.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only=OFF")
    assert index.holds.labels() == [("teaching", "1.2")]


def test_a_disk_that_is_writable_again_is_written_again(
    index: Index, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formerly, connections that were opened while the disk was read-only refused every write until the node was
    restarted."""
    real = dbapi2.connect

    def read_only(_: str, *arguments: Any, **named: Any) -> sqlite3.Connection:
        return real(f"file:{file}?mode=ro", *arguments, **{**named, "uri": True})

    index.engine.dispose()
    with monkeypatch.context() as patch:
        patch.setattr(dbapi2, "connect", read_only)
        readers = [index.engine.connect() for _ in range(3)]
        for reader in readers:
            reader.exec_driver_sql("SELECT count(*) FROM label")
        for reader in readers:
            reader.close()
        before = index.engine.pool
        with pytest.raises(StoreFull, match="readonly database"):
            index.holds.put_label("refused", "1.2", **WHO)
        assert index.engine.pool is not before, "one connection that stays open keeps the others read-only"
        assert index.holds.labels() == [("teaching", "1.2")]
    refused = 0
    for number in range(8):
        try:
            index.holds.put_label(f"later {number}", "1.2", **WHO)
        except StoreFull:
            refused += 1
    assert refused <= 1


def test_an_error_in_a_statement_keeps_its_name(index: Index) -> None:
    """Such an error is a fault of this program, and advice on disks and permissions would not help."""
    with pytest.raises(Exception, match="no such column") as raised, writing(index.engine) as connection:
        connection.exec_driver_sql("SELECT colour FROM label")
    assert not isinstance(raised.value, IndexFault | StoreFull)
    with index.engine.connect() as connection:
        assert connection.execute(select(label.c.name)).scalars().all() == ["teaching"]


def test_a_file_that_is_no_index_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE song (name TEXT)")
    connection.close()
    with pytest.raises(IndexRefused, match=f"{file} is a database, but not the index of an archive"):
        Index.open(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("song",)]
    connection.close()
