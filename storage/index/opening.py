"""Opens the index of an archive, after checking that it belongs to the objects and the journal.

An index that is new, or that ends where the journal ends, is opened. An index that ends earlier, such as a copy from a
backup, is completed from the journal. An index that is empty, damaged or that of another archive is refused: a scrub
would treat the objects that it lacks as orphans, and deletions, holds and amendments would be undone silently.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, insert, select

from storage.errors import IndexRefused, JournalDamaged
from storage.index.change_capture import all_rows, last_number, set_last_number, unmarked_since
from storage.index.connection import FOLLOWER, commits_need_no_sync, writing
from storage.index.holdings import Index
from storage.index.index_trust import REBUILD, sqlite_file
from storage.index.integrity import Integrity
from storage.index.journal_replay import Loader, loading
from storage.index.journal_writer import Follower, TrailFollower
from storage.index.rendition_rows import is_known_by
from storage.index.tables import archive, hold, instance, quarantine, reference_copy, rendition, tombstone, trail
from storage.index.trail_rows import record_digest
from storage.objects.change_journal import ChangeJournal
from storage.objects.inspection import holds_any
from storage.objects.trail_journal import TrailJournal
from storage.printable import counted
from storage.records import TrailRecord

ACCEPT_EMPTY = "start the node with --accept-empty-index to begin an empty archive"


@dataclass(frozen=True)
class Opened:
    """An index, which the caller closes, and one sentence for each repair."""

    index: Index
    notes: tuple[str, ...] = ()


def open_checked_index(
    url: str, root: Path, *, holds_objects: bool, accept_empty: bool = False, replay: bool = True
) -> Opened:
    """The index of the archive below ``root``. Raises IndexRefused, NewerFormat, JournalDamaged.

    ``holds_objects``: whether a store of the archive has any object. ``accept_empty``: begin an empty archive; the
    former journal is kept in ``journal/superseded``. ``replay``: whether an older index may be completed from the
    journal; no other process may use the index then.
    """
    file = sqlite_file(url)
    if file is None:
        return _opened_on_server(url, root, holds_objects, accept_empty)
    journal = ChangeJournal(root / "journal")
    with journal.locked():
        notes = [note for note in (journal.repair(), TrailJournal(root / "journal").repair()) if note]
        has_past = holds_objects or journal.last() > 0 or TrailJournal(root / "journal").last() is not None
        if not file.exists() or not file.stat().st_size:
            _refuse_empty(file, has_past and not accept_empty)
        index = Index.open(url)
        try:
            if not accept_empty:
                _refuse_empty_root(index, root)
            notes += _reconcile(index, file, journal, root, has_past, accept_empty, replay)
            notes += _trail_completed(index, TrailJournal(root / "journal"))
        except BaseException:
            index.close()
            raise
    commits_need_no_sync(index.engine)
    follower = Follower(index.engine, journal, TrailFollower(index.trail, TrailJournal(root / "journal")), file)
    index.engine.update_execution_options(**{FOLLOWER: follower})
    follower()
    return Opened(index, tuple(notes))


def _opened_on_server(url: str, root: Path, holds_objects: bool, accept_empty: bool) -> Opened:
    """An index on a database server, which has a log of its own instead of the change journal."""
    index, journal = Index.open(url), TrailJournal(root / "journal")
    try:
        notes = [note for note in (journal.repair(),) if note]
        has_past = holds_objects or journal.last() is not None
        with index.engine.connect() as connection:
            begun = connection.execute(select(archive.c.identity)).first() is not None
        if not accept_empty:
            _refuse_empty(index.engine.url.database, has_past and not begun)
            _refuse_empty_root(index, root)
            _refuse_another_history(index, journal)
            notes += _trail_completed(index, journal)
        if not begun:
            with writing(index.engine) as connection:
                connection.execute(insert(archive).values(identity=str(uuid.uuid4())))
    except BaseException:
        index.close()
        raise
    index.engine.update_execution_options(**{FOLLOWER: TrailFollower(index.trail, journal)})
    return Opened(index, tuple(notes))


def _refuse_empty(where: object, refuse: bool) -> None:
    if refuse:
        what = f"the index {where} is empty or missing, but there are objects or a journal"
        raise IndexRefused(f"{what}; {REBUILD}, or {ACCEPT_EMPTY}")


def _refuse_empty_root(index: Index, root: Path) -> None:
    """Raises IndexRefused if an index in another place names objects, and ``root`` has neither objects nor a journal.

    What is stored there would be hidden when its disk is mounted again.
    """
    if holds_any(root) or any((root / "journal").glob("*.jsonl")):
        return
    named = Integrity(index.engine).count()
    if named:
        raise IndexRefused(
            f"the index names {counted(named, 'object')}, and storage.root {root} has no object and no journal: is its "
            f"disk mounted, and is storage.root right? If all objects are lost, restore a backup, or {ACCEPT_EMPTY}"
        )


def _reconcile(
    index: Index, file: Path, journal: ChangeJournal, root: Path, has_past: bool, accept_empty: bool, replay: bool
) -> list[str]:
    with index.engine.connect() as connection:
        identity = connection.execute(select(archive.c.identity)).scalar()
        blank = _is_blank(connection)
        number = last_number(connection)
    recorded, last = journal.archive(), journal.last()
    if identity is None:
        _refuse_empty(file, blank and has_past and not accept_empty)
        identity = str(uuid.uuid4())
        begin_journal(index, journal, identity)
        with index.engine.connect().execution_options(write=True) as connection, connection.begin():
            connection.execute(insert(archive).values(identity=identity))
        if blank and has_past:
            return ["the archive begins with an empty index, as accepted"]
        if blank and not accept_empty:
            return [
                f"a new archive begins in {root}, which held none; if you expect images there, correct storage.root"
            ]
        return []
    if recorded and recorded != identity:
        if not accept_empty:
            raise IndexRefused(
                f"the index {file} belongs to another archive ({identity}; the journal belongs to {recorded}); put the "
                f"right one back, or {REBUILD}"
            )
        journal.set_aside()
        recorded = ""
    if recorded and not accept_empty:
        _refuse_another_history(index, TrailJournal(root / "journal"))
    if recorded and number < last:
        return [_replayed(index, file, journal, root, number, last, replay)]
    with index.engine.connect() as connection:
        lacks = unmarked_since(connection, last)
    if not recorded or lacks:
        begin_journal(index, journal, identity)
        return ["the journal lacked changes that the index has, so it was written again with all rows"]
    return []


def _refuse_another_history(index: Index, journal: TrailJournal) -> None:
    """Raises IndexRefused if index and journal have different records of one number in the audit trail.

    This happens if one of them was in use before, and the other after, the archive was restored from a backup. Neither
    is then older. A changed or damaged record does not count here, and the check of the trail reports it.
    """
    newest, number = journal.last(), index.trail.last()[0]
    if newest is None or not number:
        return
    at = min(newest.number, number)
    try:
        of_journal = (
            newest if at == newest.number else next((one for one in journal.records() if one.number == at), None)
        )
    except JournalDamaged:
        return
    both = [one for one in (of_journal, next(index.trail.records(after=at - 1), None)) if one is not None]
    if len({record_digest(one) for one in both}) == 2 and all(record_digest(one) == one.digest for one in both):
        raise IndexRefused(
            f"the index {index.engine.url.database} and the journal have different records {at} of the audit trail, as "
            f"happens if one of them is older than a restore of the archive; put the right one back, or {REBUILD}"
        )


def begin_journal(index: Index, journal: ChangeJournal, identity: str) -> None:
    """Write the change journal again with every row of an index. Raises StoreFull."""
    with index.engine.connect() as connection:
        _checkpoint(connection)
        journal.begin(identity, last_number(connection), all_rows(connection))


def _checkpoint(connection: Connection) -> None:
    """Write all committed rows to the file itself, since the journal must not be ahead of it."""
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def compact_journal(url: str, root: Path) -> tuple[int, int]:
    """Write the change journal again with the current rows. Returns its size in bytes before and after.

    The caller keeps nodes out. Raises the errors of ``open_checked_index``, JournalDamaged and StoreFull, and loses
    nothing then.
    """
    with closing(open_checked_index(url, root, holds_objects=True).index) as index:
        journal = ChangeJournal(root / "journal")
        with journal.locked(), index.engine.connect() as connection:
            _checkpoint(connection)
            before, number = journal.size(), last_number(connection)
            if journal.last() != number:
                raise IndexRefused("another process uses the index: compact its journal when that has ended")
            journal.compact(journal.archive(), number, all_rows(connection))
            return before, journal.size()


def _is_blank(connection: Connection) -> bool:
    """Whether an index has no image, no hold, no tombstone, no quarantined object and no record of the trail."""
    tables = (instance, hold, tombstone, quarantine, trail)
    return not any(connection.execute(select(func.count()).select_from(table)).scalar() for table in tables)


def _replayed(
    index: Index, file: Path, journal: ChangeJournal, root: Path, number: int, last: int, replay: bool
) -> str:
    """Complete an older index from the journal, in one transaction."""
    what = f"the index {file} is older than the journal (it ends at change {number}, the journal at {last})"
    if not replay:
        raise IndexRefused(f"{what}; start the node, which completes it, or {REBUILD}")
    if journal.whole_since() > number:
        raise IndexRefused(f"{what}, which does not go back that far; {REBUILD}")
    records, after = list(TrailJournal(root / "journal").records()), index.trail.last()[0]
    try:
        with loading(index.engine) as connection:
            loader = Loader(connection)
            for group in journal.groups(after=number):
                for change in group.rows:
                    loader.add(change)
            loader.flush()
            set_last_number(connection, last)
            _refuse_lost_images(connection, what, (record for record in records if record.number > after))
    except JournalDamaged as error:
        raise IndexRefused(f"{what}, and {error}; {REBUILD}") from error
    index.replay_trail(records)  # the journal may lack its last lines
    return f"{what}: {counted(last - number, 'change')} replayed from the journal"


def _trail_completed(index: Index, journal: TrailJournal) -> list[str]:
    """Give an index the last records of the audit trail, with their decisions, if only their journal has them.

    A power failure can take commits from the index, and commits to the trail alone are not in the change journal. An
    index without any record gets them when its archive starts (``AuditTrail.recover``).
    """
    newest = journal.last()  # read first: a node commits a record before it journals it
    number, digest = index.trail.last()
    if newest is None or not number or newest.number <= number:
        return []
    what = f"the audit trail in the index ended at record {number}"
    try:
        records = list(journal.records())
    except JournalDamaged as error:
        return [f"{what}, and its journal cannot be read: {error}"]
    if not any((record.number, record.digest) == (number, digest) for record in records):
        return []  # of another archive, or changed: the check of the trail reports it
    with index.engine.connect() as connection:
        _refuse_lost_images(connection, what, (record for record in records if record.number > number))
    _, count = index.replay_trail(records)
    return [f"{what}: {counted(count, 'record')} taken from its journal"]


def _refuse_lost_images(connection: Connection, what: str, records: Iterable[TrailRecord]) -> None:
    """Raises IndexRefused if the index does not know an image that, by the trail, was stored and not deleted.

    The change journal has then lost its rows, and a rebuild finds its object.
    """
    stored: dict[str, None] = {}
    for record in records:
        if record.entry.action == "store" and record.entry.outcome == "success":
            stored |= dict.fromkeys(record.entry.uids)
        elif record.entry.action == "delete":
            for uid in record.entry.uids:
                stored.pop(uid, None)
    lost = [uid for uid in stored if not _is_known(connection, uid)]
    if lost:
        raise IndexRefused(f"{what}, and the journal has lost {counted(len(lost), 'image')} stored since; {REBUILD}")


def _is_known(connection: Connection, uid: str) -> bool:
    """Whether a UID is that of an image, of one that was deleted, or of an object that was made here."""
    looks = (
        select(instance.c.key).where(instance.c.sop_instance_uid == uid),
        select(tombstone.c.key).where(tombstone.c.uid == uid),
        select(rendition.c.key).where(is_known_by([uid])),
        select(reference_copy.c.uid).where(reference_copy.c.uid == uid),
    )
    return any(connection.execute(look).first() is not None for look in looks)
