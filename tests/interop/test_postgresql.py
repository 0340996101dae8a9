"""Proves that an archive keeps its index on a PostgreSQL server: what it does there, and what an outage costs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import Dataset
from sqlalchemy import func, make_url, select, update
from sqlalchemy.exc import IntegrityError

from node.app import Node
from node.dimse import client
from node.dimse.client import Receiver
from storage.errors import IndexFault, IndexRefused
from storage.index import Index, connection
from storage.index.connection import writing
from storage.index.holdings import Added
from storage.index.holds import HoldKind
from storage.index.job_runs import Cause, JobRows
from storage.index.opening import open_checked_index
from storage.index.tables import instance, patient, study
from storage.records import InstanceState, OriginalForm
from tests.conftest import Archive, settings_for, wait_for
from tests.support.commands import invoke
from tests.support.index_rows import claimed, digest, new_instance, new_rendition
from tests.support.postgresql import PostgreSql, running_server
from tests.support.samples import mammogram, write
from tests.support.transfers import got, send_and_settle

WHO = {"reason": "a test", "who": "user:me"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    with running_server() as running:
        yield running


@pytest.fixture
def url(server: PostgreSql) -> str:
    return server.database()


@pytest.fixture
def index(url: str) -> Iterator[Index]:
    with closing(Index.open(url)) as opened:
        yield opened


@pytest.fixture
def archive(url: str, tmp_path: Path, receiver: Receiver) -> Iterator[Archive]:
    """A node with its index on the server, and a running archivist."""
    changes = {"storage": {"database": url}, "originals": {"retain_for": "0d"}}
    with Node(settings_for(tmp_path / "archive", receiver.port, **changes)) as node:
        yield Archive(node, receiver)


def small(**changes: Any) -> Dataset:
    """An image of 32 by 32 pixels, which is stored and not encoded."""
    ds = mammogram(**changes)
    ds.Rows = ds.Columns = 32
    ds.PixelData = ds.PixelData[: 2 * 32 * 32]
    return ds


def statuses(archive: Archive, *files: Path) -> list[int]:
    answered: list[int] = []
    client.store(files, archive.address, calling="MODALITY", each=lambda path, status, seconds: answered.append(status))
    return answered


def found(archive: Archive, level: str, **keys: str) -> list[str]:
    """The Study Instance UIDs that a C-FIND returns."""
    query = Dataset()
    query.SpecificCharacterSet, query.QueryRetrieveLevel = "ISO_IR 192", level
    query.StudyInstanceUID = ""
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return sorted(str(one.StudyInstanceUID) for one in client.find(query, archive.address, calling="EXACTVIEW"))


def config_of(archive: Archive, folder: Path) -> Path:
    """A config.yaml for commands beside the node."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(archive.node.settings.model_dump(mode="json", by_alias=True)))
    return config


def name_of(url: str) -> str:
    return str(make_url(url).database)


def together(count: int, act: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(act, range(count)))


# --- an archive --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_life_of_an_image(archive: Archive, tmp_path: Path) -> None:
    """It is received, encoded, found, retrieved in both renditions, purged, amended, held and deleted."""
    index, ds = archive.node.index, mammogram(PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 192")
    (held,) = send_and_settle(archive, tmp_path, ds)
    assert held.state is InstanceState.VERIFIED
    assert index.counts().by_state["verified"] == 1
    assert found(archive, "STUDY", PatientName="MULLER*") == [ds.StudyInstanceUID]
    assert held.rendition is not None
    assert got(archive, held, "VIEWER") == (0, [held.rendition.derived_uid])
    assert got(archive, held, "EXACTVIEW") == (0, [held.sop_instance_uid])

    assert [step.sop_instance_uid for step in archive.node.retention.purge().purged] == [held.sop_instance_uid]
    purged = index.by_uid(held.sop_instance_uid)
    assert purged is not None
    assert purged.held is not None
    assert (purged.state, purged.held.form) == (InstanceState.VERIFIED, OriginalForm.PURGED)
    assert got(archive, held, "VIEWER") == (0, [held.rendition.derived_uid])

    config, study_uid = config_of(archive, tmp_path), str(ds.StudyInstanceUID)
    for command in (
        ("amend", "study", study_uid, "--set", "AccessionNumber=A%_9", "--reason", "typing error"),
        ("hold", "add", "--study", study_uid, "--reason", "court"),
        ("hold", "release", "1", "--reason", "over"),
        ("scrub", "--full"),
        ("status",),
        ("instance", "list"),
        ("trail", "--verify"),
        ("config", "check"),
    ):
        done = invoke(*command, "-c", str(config))
        assert done.exit_code == 0, (command, done.stdout, done.exception)
    assert found(archive, "STUDY", AccessionNumber="?%_*") == [study_uid]

    assert (
        invoke("delete", study_uid, *("--level", "study", "--reason", "x", "--yes", "-c", str(config))).exit_code == 0
    )
    assert found(archive, "STUDY") == []
    assert statuses(archive, write(ds, tmp_path / "again.dcm")) == [0xC004]
    for refused in (("index", "rebuild"), ("index", "compact"), ("backup", "create", str(tmp_path / "backup"))):
        done = invoke(*refused, "-c", str(config))
        assert "storage.database is not a SQLite file" in str(done.exception)


def test_queries_compare_text_by_code_point(archive: Archive, tmp_path: Path) -> None:
    """The locale of the cluster would sort ``a`` before ``B``, and ignore points and hyphens."""
    studies = {"1.2.1": ("B1", "20200105"), "1.2.10": ("a1", "20200131"), "1.2.2": ("b-1", "20210101")}
    files = [
        write(
            small(StudyInstanceUID=uid, SOPInstanceUID=f"{uid}.9", PatientID=patient_id, StudyDate=date),
            tmp_path / f"{uid}.dcm",
        )
        for uid, (patient_id, date) in studies.items()
    ]
    assert statuses(archive, *files) == [0, 0, 0]
    assert found(archive, "STUDY", PatientID="b*") == ["1.2.2"]
    assert found(archive, "STUDY", PatientID="B?") == ["1.2.1"]
    assert found(archive, "STUDY", PatientID="*1") == sorted(studies)
    assert found(archive, "STUDY", StudyDate="20200101-20200131") == ["1.2.1", "1.2.10"]
    assert found(archive, "STUDY", StudyDate="20200201-") == ["1.2.2"]
    assert found(archive, "STUDY", StudyInstanceUID="1.2.1\\1.2.2") == ["1.2.1", "1.2.2"]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_running_node_outlives_a_restart_of_the_server(
    archive: Archive, server: PostgreSql, tmp_path: Path, mode: str
) -> None:
    """While the server is down, images are refused. No image is lost, and nothing has to be restarted."""
    one, two = small(SOPInstanceUID="1.2.3.1"), small(SOPInstanceUID="1.2.3.2")
    files = [write(ds, tmp_path / f"{ds.SOPInstanceUID}.dcm") for ds in (one, two)]
    assert statuses(archive, files[0]) == [0]
    archive.settled("1.2.3.1")
    server.stop(mode)
    try:
        assert statuses(archive, files[1]) == [0xA700]
        with pytest.raises(IndexFault, match="look at the database server"):
            archive.node.index.by_uid("1.2.3.1")
        assert "look at the database server" in str(invoke("status", "-c", str(config_of(archive, tmp_path))).exception)
    finally:
        server.start()
    assert statuses(archive, files[1], files[0]) == [0, 0]
    assert archive.settled("1.2.3.2").state is InstanceState.EXACT
    wait_for(lambda: archive.node.trail.broken() == "", what="an unbroken audit trail")


def test_one_image_that_arrives_over_several_associations_is_one(archive: Archive, tmp_path: Path) -> None:
    file = write(small(SOPInstanceUID="1.2.3.1"), tmp_path / "one.dcm")
    assert together(4, lambda _: statuses(archive, file)) == [[0]] * 4
    with archive.node.index.engine.connect() as reader:
        counts = [reader.execute(select(func.count()).select_from(table)).scalar() for table in (instance, study)]
    assert counts == [1, 1]


# --- its index ---------------------------------------------------------------------------------------------------


def test_writers_queue_and_images_of_a_new_study_share_its_rows(index: Index) -> None:
    added = together(8, lambda number: index.add(new_instance(f"1.2.3.{number}", patient_id="P1")))
    assert added == [Added.NEW] * 8
    with index.engine.connect() as reader:
        rows = [reader.execute(select(func.count()).select_from(table)).scalar() for table in (patient, study)]
    assert rows == [1, 1]


def test_a_reader_sees_one_state_and_keeps_no_writer_waiting(index: Index) -> None:
    with index.engine.connect() as reader:
        count = select(func.count()).select_from(instance)
        assert reader.execute(count).scalar() == 0
        index.add(new_instance())
        assert reader.execute(count).scalar() == 0
    assert index.by_uid("1.2.3.1") is not None


def test_the_defaults_of_a_server_do_not_change_what_a_writer_sees(server: PostgreSql, url: str) -> None:
    """A snapshot that was taken before waiting for the lock would lack the commit of the previous writer."""
    server.sql(f"ALTER DATABASE {name_of(url)} SET default_transaction_isolation = 'serializable'")
    with closing(Index.open(f"{url}&connect_timeout=20")) as index:
        assert together(8, lambda number: index.add(new_instance(f"1.2.3.{number}"))) == [Added.NEW] * 8


def test_a_reader_cannot_write(index: Index) -> None:
    index.add(new_instance())
    with pytest.raises(Exception, match="read-only"), index.engine.connect() as reader:
        reader.execute(update(instance).values(state="failed"))


def test_a_writer_waits_for_another_for_a_limited_time(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a debugger stops a node, it would hold the lock for ever."""
    monkeypatch.setattr(connection, "_WRITE_LOCK", connection._WRITE_LOCK.replace("'60s'", "'50ms'"))
    with writing(index.engine), pytest.raises(IndexFault, match="lock timeout"):
        index.add(new_instance())
    assert index.add(new_instance()) is Added.NEW


def test_a_claim_belongs_to_one_worker(index: Index) -> None:
    index.add(new_instance())
    claims = together(4, lambda number: index.claim(f"worker {number}", 60))
    assert len([claim for claim in claims if claim is not None]) == 1
    index.end_claims()
    claim = claimed(index)
    assert index.finish_with(claim, InstanceState.VERIFIED, new_rendition())
    assert not index.renew(claim, 60)


def test_a_job_runs_once_at_a_time(index: Index) -> None:
    rows = JobRows(index.engine)
    together(4, lambda _: rows.ensure(["task"]))
    begun = together(4, lambda number: rows.begin("task", f"worker {number}", 60, Cause.SCHEDULE, due=4e9))
    assert len([ticket for ticket in begun if ticket is not None]) == 1


def test_foreign_keys_are_checked_and_a_failed_write_leaves_nothing(index: Index) -> None:
    index.add(new_instance())
    with pytest.raises(IntegrityError), writing(index.engine) as writer:
        writer.execute(update(instance).values(state="failed"))
        writer.execute(study.delete())
    held = index.by_uid("1.2.3.1")
    assert held is not None
    assert held.state is InstanceState.RECEIVED


def test_decisions_of_the_trail_are_replayed_and_their_numbers_are_not_given_again(
    server: PostgreSql, index: Index
) -> None:
    """This happens after an older dump of the database was restored."""
    index.add(new_instance())
    index.holds.add(HoldKind.STUDY, "1.2.1", **WHO)
    index.holds.put_label("teaching", "1.2.1", who="user:me")
    records = list(index.trail.records())
    with closing(Index.open(server.database())) as older:
        older.add(new_instance())
        assert older.replay_trail(records) == (2, 2)
        assert [one.key for one in older.holds.all()] == [1]
        assert older.holds.add(HoldKind.STUDY, "1.2.1", **WHO).key == 2
        assert [record.number for record in older.trail.records(uid="1.2.1")] == [1, 2, 3]


# --- opening -----------------------------------------------------------------------------------------------------


def test_a_database_that_is_not_of_these_objects_is_refused(server: PostgreSql, url: str, tmp_path: Path) -> None:
    root, other = tmp_path / "archive", tmp_path / "other"
    with closing(open_checked_index(url, root, holds_objects=False).index) as index:
        index.add(new_instance())
        index.holds.add(HoldKind.STUDY, "1.2.1", **WHO)
    open_checked_index(url, root, holds_objects=True).index.close()
    with pytest.raises(IndexRefused, match="is empty or missing, but there are objects"):
        open_checked_index(server.database(), root, holds_objects=True)
    with pytest.raises(IndexRefused, match="has no object and no journal"):
        open_checked_index(url, other, holds_objects=False)
    another = server.database()
    with closing(open_checked_index(another, other, holds_objects=False).index) as index:
        index.holds.add(HoldKind.STUDY, "1.2.9", **WHO)
    with pytest.raises(IndexRefused, match="different records 1 of the audit trail"):
        open_checked_index(another, root, holds_objects=True)


def test_an_older_dump_gets_its_decisions_back_from_the_trail(server: PostgreSql, url: str, tmp_path: Path) -> None:
    of_server = ("-h", server.folder, "-U", "pacs")
    with closing(open_checked_index(url, tmp_path, holds_objects=False).index) as index:
        index.add(new_instance())
        index.holds.put_label("before", "1.2.1", who="user:me")
        server.run("pg_dump", *of_server, "-Fc", "-f", server.folder / "dump", name_of(url))
        index.holds.add(HoldKind.STUDY, "1.2.1", **WHO)
    restored = server.database()
    server.run("pg_restore", *of_server, "-d", name_of(restored), server.folder / "dump")
    opened = open_checked_index(restored, tmp_path, holds_objects=True)
    with closing(opened.index) as index:
        assert opened.notes == ("the audit trail in the index ended at record 1: 1 record taken from its journal",)
        assert [one.value for one in index.holds.all()] == ["1.2.1"]
        assert index.add(new_instance("1.2.3.2", original_digest=digest("two"))) is Added.NEW


@pytest.mark.slow
def test_a_lost_database_is_replaced_by_a_sqlite_index(url: str, tmp_path: Path, receiver: Receiver) -> None:
    root, config = tmp_path / "archive", tmp_path / "config.yaml"
    with Node(settings_for(root, receiver.port, storage={"database": url})) as node:
        archive = Archive(node, receiver)
        assert statuses(archive, write(small(SOPInstanceUID="1.2.3.1"), tmp_path / "one.dcm")) == [0]
        archive.settled("1.2.3.1")
        node.index.holds.add(HoldKind.PATIENT, "P1", **WHO)
    settings = settings_for(root, receiver.port)
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", by_alias=True)))
    assert "index rebuild" in str(invoke("status", "-c", str(config)).exception)
    assert invoke("index", "rebuild", "-c", str(config)).exit_code == 0
    with Node(settings) as node:
        assert Archive(node, receiver).settled("1.2.3.1").state is InstanceState.EXACT
        assert [one.value for one in node.index.holds.all()] == ["P1"]


def test_problems_of_the_server_are_one_sentence_each(server: PostgreSql, url: str) -> None:
    with pytest.raises(IndexRefused, match=r"does not exist: look at|does not exist\): look at"):
        Index.open(server.url("nothing"))
    server.sql("CREATE TABLE others (x int)", name_of(url))
    with pytest.raises(IndexRefused, match="not the index of an archive"):
        Index.open(url)
    server.sql("CREATE ROLE stranger LOGIN")
    with pytest.raises(IndexFault, match=r"permission denied for schema public"):
        Index.open(server.url(name_of(server.database()), "stranger"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(IndexRefused, match="refused"):
            Index.open(f"postgresql+psycopg://pacs@127.0.0.1:{taken.getsockname()[1]}/x")
