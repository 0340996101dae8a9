"""Proves that storage commitment reports the truth, once and in time, to pynetdicom and to Orthanc."""

from __future__ import annotations

import errno
import gc
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, build_role, evt
from sqlalchemy import update

from benchmarks.ingest import free_port
from node.app import Node
from node.archive.originals.storage_commitment import CommitmentJudge, FailureReason
from node.config import parse
from node.dimse.client import Address, store
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
from storage.errors import ConfigError
from storage.index.commitment_requests import CommitmentItem, Commitments, CommitmentState
from storage.index.connection import writing
from storage.index.reading import batches
from storage.index.tables import original
from storage.records import OriginalForm, StoredInstance
from tests.conftest import settings_for, wait_for
from tests.support import samples
from tests.support.index_rows import has_pin, states_of
from tests.support.peers import Orthanc

# pynetdicom leaves the socket of an association that was refused or broke to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <s:pytest.PytestUnraisableExceptionWarning")

SUCCEEDED, FAILED = 1, 2


@dataclass
class Modality:
    """A storage commitment SCU that listens for reports. ``answers``: the statuses that it returns in turn; the last is
    repeated."""

    port: int = field(default_factory=free_port)
    answers: list[int] = field(default_factory=lambda: [0])
    reports: queue.Queue[tuple[int, Dataset]] = field(default_factory=queue.Queue)
    roles: list[Any] = field(default_factory=list)
    answered: int = 0

    def handlers(self) -> list[Any]:
        return [(evt.EVT_N_EVENT_REPORT, self._report)]

    @contextmanager
    def listening(self) -> Iterator[None]:
        entity = AE("MODALITY")
        entity.add_supported_context(STORAGE_COMMITMENT, scu_role=False, scp_role=True)
        server: Any = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=self.handlers())
        try:
            yield
        finally:
            server.shutdown()

    def heard(self) -> tuple[int, Dataset]:
        return self.reports.get(timeout=300)

    def _report(self, event: Any) -> tuple[int, None]:
        self.roles.append(event.assoc.requestor.role_selection)
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.answered += 1
        if status == 0:
            self.reports.put((event.event_type, event.event_information))
        return status, None


@contextmanager
def node(root: Path, modality: Modality, **changes: Any) -> Iterator[Node]:
    allow = ["echo", "store", "commit"]
    peers = [
        {"ae_title": "MODALITY", "allow": allow, "host": "127.0.0.1", "port": modality.port},
        {"ae_title": "CLINIC", "allow": allow},
        {"ae_title": "VIEWER", "allow": ["echo", "find"]},
    ]
    settings = {"peers": peers, "archivist": {"enabled": False}, "commitment": {"retry": 0.2}, **changes}
    with Node(settings_for(root / "archive", **settings)) as running:
        yield running
    gc.collect()


def address(running: Node) -> Address:
    return Address("127.0.0.1", running.server.port, "LATENTPACS")


def stored(running: Node, folder: Path, **changes: Any) -> Dataset:
    ds = samples.mammogram(samples.breast(256, 256, seed=len(list(folder.iterdir()))), **changes)
    path = samples.write(ds, folder / f"{ds.SOPInstanceUID}.dcm")
    store([path], address(running), calling="MODALITY", each=lambda *_: None)
    return ds


def references(*pairs: tuple[str, str]) -> list[Dataset]:
    items = []
    for sop_class, uid in pairs:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    return items


def request(items: list[Dataset], transaction: str = "") -> Dataset:
    information = Dataset()
    information.TransactionUID = transaction or generate_uid()
    information.ReferencedSOPSequence = items
    return information


def of(ds: Dataset) -> tuple[str, str]:
    return str(ds.SOPClassUID), str(ds.SOPInstanceUID)


def associate(running: Node, calling: str, handlers: list[Any] | None = None) -> Any:
    entity = AE(calling)
    entity.add_requested_context(STORAGE_COMMITMENT)
    return entity.associate("127.0.0.1", running.server.port, evt_handlers=handlers or [])


def ask(running: Node, information: Dataset, *, calling: str = "MODALITY", action: int = 1, instance: str = "") -> int:
    """Send an N-ACTION on an association that is released at once. Returns the status."""
    assoc = associate(running, calling)
    assert assoc.is_established
    about = STORAGE_COMMITMENT, instance or STORAGE_COMMITMENT_INSTANCE
    status, _ = assoc.send_n_action(information, action, *about)
    assoc.release()
    return int(status.Status)


def test_what_is_held_is_committed_and_pinned(tmp_path: Path) -> None:
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with modality.listening(), node(tmp_path, modality) as running:
        images = [stored(running, files) for _ in range(2)]
        information = request(references(*map(of, images)))
        assert ask(running, information) == 0
        event_type, report = modality.heard()
        assert event_type == SUCCEEDED
        assert report.TransactionUID == information.TransactionUID
        assert report.RetrieveAETitle == "LATENTPACS"
        assert {of_item(item) for item in report.ReferencedSOPSequence} == {of(ds) for ds in images}
        assert "FailedSOPSequence" not in report
        (role,) = modality.roles[0].values()
        assert (bool(role.scu_role), bool(role.scp_role)) == (False, True), "the caller is the SCP, and says so"
        keys = [running.index.by_uid(str(ds.SOPInstanceUID)).key for ds in images]  # type: ignore[union-attr]
        assert [has_pin(running.index.engine, key) for key in keys] == [True, True]
        assert not has_pin(running.index.engine, keys[0] + 1000)
        wait_for(lambda: states_of(running.index.engine, information.TransactionUID) == [CommitmentState.REPORTED])


def of_item(item: Dataset) -> tuple[str, str]:
    return str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)


@pytest.mark.slow
def test_every_reason_not_to_commit(tmp_path: Path) -> None:
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with modality.listening(), node(tmp_path, modality) as running:
        good, damaged, gone, contested = (stored(running, files) for _ in range(4))
        stored(running, files, SOPInstanceUID=contested.SOPInstanceUID)
        for ds, spoil in ((damaged, lambda path: path.write_bytes(b"x" * path.stat().st_size)), (gone, Path.unlink)):
            held = running.index.by_uid(str(ds.SOPInstanceUID))
            assert held is not None
            spoil(running.store.held(held.original_digest))
        unknown = (samples.MAMMOGRAPHY, generate_uid())
        other_class = ("1.2.840.10008.5.1.4.1.1.7", str(good.SOPInstanceUID))
        asked = [of(good), of(damaged), of(gone), of(contested), unknown, other_class]
        assert ask(running, request(references(*asked))) == 0
        event_type, report = modality.heard()
        assert event_type == FAILED
        assert [of_item(item) for item in report.ReferencedSOPSequence] == [of(good)]
        assert {of_item(item): item.FailureReason for item in report.FailedSOPSequence} == {
            of(damaged): FailureReason.PROCESSING_FAILURE,
            of(gone): FailureReason.PROCESSING_FAILURE,
            of(contested): FailureReason.PROCESSING_FAILURE,
            unknown: FailureReason.NO_SUCH_INSTANCE,
            other_class: FailureReason.CLASS_INSTANCE_CONFLICT,
        }


@pytest.mark.slow
def test_a_reconstruction_is_not_committed(tmp_path: Path) -> None:
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with modality.listening(), node(tmp_path, modality, archivist={"poll": 0.1}) as running:
        ds = stored(running, files)

        def derived() -> Any:
            held = running.index.by_uid(str(ds.SOPInstanceUID))
            return held.rendition if held is not None else None

        rendition = wait_for(derived, what="image verified")
        assert ask(running, request(references((str(ds.SOPClassUID), rendition.derived_uid), of(ds)))) == 0
        event_type, report = modality.heard()
        assert event_type == FAILED
        assert [of_item(item) for item in report.ReferencedSOPSequence] == [of(ds)]
        assert [item.FailureReason for item in report.FailedSOPSequence] == [FailureReason.PROCESSING_FAILURE]


@pytest.mark.slow
def test_requests_that_are_none(tmp_path: Path) -> None:
    modality = Modality()
    with node(tmp_path, modality) as running:
        item = references((samples.MAMMOGRAPHY, "1.2.3"))
        assert ask(running, request(item), calling="VIEWER") == 0x0124
        assert ask(running, request(item), calling="STRANGER") == 0x0124
        assert ask(running, request(item), action=2) == 0x0123
        assert ask(running, request(item), instance="1.2.3") == 0x0112
        assert ask(running, request([])) == 0x0120
        assert ask(running, request(item, transaction="1.2.x")) == 0x0106
        assert ask(running, request(references(("1.2.3", "no uid")))) == 0x0106
        without = request(item)
        del without.TransactionUID
        assert ask(running, without) == 0x0120
        assert running.commitments.claim("test", 1.0) is None


@pytest.mark.slow
def test_the_report_is_repeated_until_it_is_taken(tmp_path: Path) -> None:
    """At first nobody listens, then the peer refuses the report, and then it accepts it. It is not sent again."""
    modality, files = Modality(answers=[0x0110, 0]), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        information = request(references(of(ds)))
        assert ask(running, information) == 0
        uid = str(information.TransactionUID)
        wait_for(lambda: states_of(running.index.engine, uid) == [CommitmentState.DECIDED], what="judged, and not told")
        with modality.listening():
            event_type, report = modality.heard()
            assert (event_type, report.TransactionUID) == (SUCCEEDED, uid)
            wait_for(lambda: states_of(running.index.engine, uid) == [CommitmentState.REPORTED], what="told")
        assert modality.answered == 2


@pytest.mark.slow
@pytest.mark.parametrize("warning", [0x0107, 0xB000])
def test_a_warning_takes_the_report(tmp_path: Path, warning: int) -> None:
    modality, files = Modality(answers=[warning]), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running, modality.listening():
        information = request(references(of(stored(running, files))))
        assert ask(running, information) == 0
        wait_for(lambda: states_of(running.index.engine, information.TransactionUID) == [CommitmentState.REPORTED])
    assert modality.answered == 1


@pytest.mark.slow
def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        information = request(references(of(ds)))
        assert ask(running, information) == 0
        wait_for(lambda: states_of(running.index.engine, information.TransactionUID) == [CommitmentState.DECIDED])
    with modality.listening(), node(tmp_path, modality):
        event_type, report = modality.heard()
        assert (event_type, report.TransactionUID) == (SUCCEEDED, information.TransactionUID)


@pytest.mark.slow
def test_an_index_that_cannot_be_written_for_a_while_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formerly, the thread ended, and no report was sent until the node was restarted."""
    modality, files, refused = Modality(), tmp_path / "files", []
    files.mkdir()

    def refuse(*_: Any, **named: Any) -> None:
        refused.append(named)
        raise OSError(errno.EROFS, "Read-only file system")

    with node(tmp_path, modality) as running:
        information = request(references(of(stored(running, files))))
        assert ask(running, information) == 0
        wait_for(lambda: states_of(running.index.engine, information.TransactionUID) == [CommitmentState.DECIDED])
        with monkeypatch.context() as patch:
            patch.setattr(Commitments, "claim", refuse)
            wait_for(lambda: {} in refused, what="a look at the requests that are due")
        with modality.listening():
            assert modality.heard()[1].TransactionUID == information.TransactionUID


@pytest.mark.slow
def test_a_peer_that_is_never_reached_is_given_up(tmp_path: Path) -> None:
    modality = Modality()
    with node(tmp_path, modality, commitment={"retry": 0.1, "give_up": 0.5}) as running:
        information = request(references((samples.MAMMOGRAPHY, "1.2.3")))
        assert ask(running, information) == 0
        wait_for(
            lambda: states_of(running.index.engine, information.TransactionUID) == [CommitmentState.GIVEN_UP],
            what="given up",
        )


@pytest.mark.slow
def test_a_transaction_uid_in_use(tmp_path: Path) -> None:
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        information = request(references(of(ds)))
        assert [ask(running, information) for _ in range(2)] == [0, 0]
        with modality.listening():
            heard = [modality.heard() for _ in range(2)]
        told = dict(heard)
        assert set(told) == {SUCCEEDED, FAILED}
        reasons = [item.FailureReason for item in told[FAILED].FailedSOPSequence]
        assert reasons == [FailureReason.DUPLICATE_TRANSACTION_UID]


@pytest.mark.slow
def test_a_peer_without_an_address_is_told_where_it_asked(tmp_path: Path) -> None:
    """The peer keeps its association open, and sends other requests meanwhile."""
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        assoc = associate(running, "CLINIC", modality.handlers())
        for number in range(2):
            information = request(references(of(ds)))
            about = STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE
            status, _ = assoc.send_n_action(information, 1, *about, msg_id=number + 1)
            assert status.Status == 0
            event_type, report = modality.heard()
            assert (event_type, report.TransactionUID) == (SUCCEEDED, information.TransactionUID)
            uid = str(information.TransactionUID)
            wait_for(lambda uid=uid: states_of(running.index.engine, uid) == [CommitmentState.REPORTED])
        assoc.release()


@pytest.mark.slow
def test_a_peer_without_an_address_that_hangs_up_is_not_told(tmp_path: Path) -> None:
    with node(tmp_path, Modality(), commitment={"retry": 0.1, "give_up": 0.5}) as running:
        information = request(references((samples.MAMMOGRAPHY, "1.2.3")))
        assert ask(running, information, calling="CLINIC") == 0
        wait_for(
            lambda: states_of(running.index.engine, information.TransactionUID) == [CommitmentState.GIVEN_UP],
            what="given up",
        )


@pytest.mark.slow
def test_refuse_is_not_negotiated(tmp_path: Path) -> None:
    modality = Modality()
    with node(tmp_path, modality, commitment={"pin_for": "refuse"}) as running:
        assert not associate(running, "MODALITY").is_established


@pytest.mark.slow
def test_pins_last_as_long_as_they_should(tmp_path: Path) -> None:
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        held = running.index.by_uid(str(ds.SOPInstanceUID))
        assert held is not None
        commitments = Commitments(running.index.engine)
        for pin_for, expected in (("1s", False), ("forever", True)):
            settings = parse({"commitment": {"pin_for": pin_for}}, "t").commitment
            key = commitments.add(generate_uid(), "TEST", [CommitmentItem(*of(ds))], due=time.time() + 1000)
            asked = commitments.claim("test", 60, key=key)
            assert asked is not None
            assert CommitmentJudge(running.index, commitments, lambda held: "", settings).judge(asked)[0].reason == 0
            assert has_pin(running.index.engine, held.key)
            wait_for(
                lambda expected=expected: has_pin(running.index.engine, held.key) == expected,
                what="the pin is over, or not",
            )


@pytest.mark.slow
def test_an_original_that_goes_while_it_is_judged_is_not_committed(tmp_path: Path) -> None:
    """Purge and pin are serialised by the database. An original that changed since it was read is reported as
    failed."""
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        commitments = running.commitments
        key = commitments.add(generate_uid(), "TEST", [CommitmentItem(*of(ds))], due=time.time() + 1000)
        asked = commitments.claim("test", 60, key=key)
        assert asked is not None
        assert commitments.claim("other", 60, key=key) is None, "one at a time"
        judge = CommitmentJudge(running.index, commitments, lambda held: "", running.settings.commitment)
        held = running.index.by_uid(str(ds.SOPInstanceUID))
        assert held is not None
        judged = judge._judge_one(asked.references[0], False, set())
        changed = type(judged)(judged.sop_class_uid, judged.sop_instance_uid, 0, held.key, "0" * 64)
        assert commitments.decide(asked, [changed], until=None)[0].reason == FailureReason.PROCESSING_FAILURE
        assert not has_pin(running.index.engine, held.key)


@pytest.mark.slow
def test_more_instances_than_one_query_takes_are_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "__defaults__", (2,))
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        items = [CommitmentItem(*of(stored(running, files))) for _ in range(5)]
        commitments = running.commitments
        key = commitments.add(generate_uid(), "TEST", items, due=time.time() + 1000)
        asked = commitments.claim("test", 60, key=key)
        assert asked is not None
        judge = CommitmentJudge(running.index, commitments, lambda held: "", running.settings.commitment)
        decided = judge.judge(asked)
        assert [(one.sop_instance_uid, one.reason) for one in decided] == [(one.sop_instance_uid, 0) for one in items]
        for item in items:
            held = running.index.by_uid(item.sop_instance_uid)
            assert held is not None
            assert has_pin(running.index.engine, held.key)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["purged", "deleted"])
def test_an_original_that_is_purged_or_deleted_after_it_was_read_is_not_committed(tmp_path: Path, how: str) -> None:
    """Minutes may pass between the reading of the first original of a request and the pins."""
    modality, files = Modality(), tmp_path / "files"
    files.mkdir()
    with node(tmp_path, modality) as running:
        ds = stored(running, files)
        uid, engine = str(ds.SOPInstanceUID), running.index.engine
        key = running.commitments.add(generate_uid(), "TEST", [CommitmentItem(*of(ds))], due=time.time() + 1000)
        asked = running.commitments.claim("test", 60, key=key)
        assert asked is not None

        def read(held: StoredInstance) -> str:
            if how == "deleted":  # as if the process that deletes it had not come to the rows yet
                running.index.tombstones.mark_deleted("image", uid, reason="wrong", who="user:test")
            else:
                with writing(engine) as connection:
                    gone = {"form": OriginalForm.PURGED, "object_digest": None}
                    connection.execute(update(original).where(original.c.instance_key == held.key).values(gone))
            return ""

        (answer,) = CommitmentJudge(running.index, running.commitments, read, running.settings.commitment).judge(asked)
        assert answer.reason == FailureReason.PROCESSING_FAILURE
        held = running.index.by_uid(uid)
        assert held is not None
        assert not has_pin(running.index.engine, held.key)


@pytest.mark.parametrize("raw", [{"pin_for": "soon"}, {"retry": "7"}, {"give_up": 0}])
def test_mistakes(raw: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"commitment.{next(iter(raw))}"):
        parse({"commitment": raw}, "t")


@pytest.mark.slow
def test_orthanc_asks_and_hears(tmp_path: Path) -> None:
    """Orthanc's REST interface shows the report: success for instances that we hold, and failure for others."""
    modality = Modality()
    with Orthanc(tmp_path) as orthanc:
        peers = [{"ae_title": "ORTHANC", "allow": ["echo", "store", "commit"]}]
        peers[0].update({"host": "127.0.0.1", "port": orthanc.dicom_port})
        with node(tmp_path, modality, peers=peers) as running:
            orthanc.know("us", address(running), calling="ORTHANC")
            for held in (True, False):
                ds = samples.mammogram(samples.breast(256, 256))
                path = samples.write(ds, tmp_path / "image.dcm")
                identifier = orthanc.call("POST", "/instances", path.read_bytes())["ID"]
                if held:
                    orthanc.post("/modalities/us/store", [identifier])
                asked = orthanc.post("/modalities/us/storage-commitment", {"Resources": [identifier]})["ID"]
                path_of = f"/storage-commitment/{asked}"
                wait_for(lambda at=path_of: orthanc.get(at)["Status"] != "Pending", what="Orthanc was told")
                told = orthanc.get(path_of)
                assert told["Status"] == ("Success" if held else "Failure"), told
                assert told["RemoteAET"] == "LATENTPACS"


@pytest.mark.slow
def test_role_of_the_one_who_asks(tmp_path: Path) -> None:
    """A peer that proposes to be SCP here, for a report that nobody requested, is rejected."""
    modality = Modality()
    with node(tmp_path, modality) as running:
        entity = AE("MODALITY")
        entity.add_requested_context(STORAGE_COMMITMENT)
        for scu, scp, accepted in ((True, False, True), (False, True, False)):
            role: Any = build_role(STORAGE_COMMITMENT, scu_role=scu, scp_role=scp)
            assoc = entity.associate("127.0.0.1", running.server.port, ext_neg=[role])
            assert assoc.is_established == accepted
            if accepted:
                assoc.release()
