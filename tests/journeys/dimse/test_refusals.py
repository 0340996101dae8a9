"""Proves that each refusal is reported: to the peer with its reason, to log and audit trail without folders or
patients.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from typer.testing import CliRunner

from node.app import Node
from node.archive.intake.ingest import ANOTHER_PATIENT, Ingest, Receipt
from node.cli.exit_codes import UsageError
from node.cli.main import app
from node.config import load, parse
from node.dimse import client
from node.dimse.associations.refusals import Refusals
from node.dimse.dimse_status import STORE_ERRORS, of_error, reason_text
from node.dimse.sop_classes import VERIFICATION
from storage.errors import ConfigError, Duplicate, ObjectMissing, StoreFull
from storage.records import TrailEntry
from tests.conftest import Archive, settings_for, wait_for
from tests.support.paths import SHIPPED
from tests.support.peers import dead_port
from tests.support.raw_sender import RawSender
from tests.support.samples import MAMMOGRAPHY, breast, mammogram, write
from tests.support.transfers import stored

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


def told(archive: Archive, action: str) -> list[TrailEntry]:
    """The entries of refusals in the trail. Waits until there is one."""

    def entries() -> list[TrailEntry]:
        records = [record.entry for record in archive.node.index.trail.records()]
        return [one for one in records if one.action == action and one.outcome != "success"]

    found: list[TrailEntry] = wait_for(entries, what=f"a refused {action} in the trail")
    return found


def test_a_refused_store_names_image_peer_and_reason(
    quiet_archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = stored(quiet_archive, tmp_path)
    other = mammogram(breast(640, 512), SOPInstanceUID=held.sop_instance_uid, PatientName="Other^Name")
    statuses: list[int] = []
    path = write(other, tmp_path / "other.dcm")
    with caplog.at_level(logging.WARNING):
        client.store([path], quiet_archive.address, calling="MODALITY", each=lambda _, one, __: statuses.append(one))
    assert statuses == [0xC003]
    (entry,) = told(quiet_archive, "store")
    assert (entry.who, entry.level, entry.uids, entry.outcome) == (
        *("MODALITY", "image"),
        *((held.sop_instance_uid,), "refused: C003"),
    )
    assert "other content" in entry.detail
    assert "127.0.0.1" in entry.detail
    line = next(line for line in caplog.messages if "refused store" in line)
    for word in ("MODALITY", "127.0.0.1", held.sop_instance_uid, "C003"):
        assert word in line
    assert "Other" not in line


def test_an_association_that_ends_while_its_image_is_stored_is_named(
    quiet_archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its spool is removed: the log would name a file that is not there, as if the disk were at fault."""
    entity = AE("MODALITY")
    entity.add_requested_context(MAMMOGRAPHY, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", quiet_archive.address.port, ae_title="LATENTPACS")
    receive = Ingest.receive

    def ended_first(ingest: Ingest, spooled: Path, **command: Any) -> Receipt:
        assoc.abort()
        wait_for(lambda: not spooled.parent.exists(), what="the spool is removed")
        return receive(ingest, spooled, **command)

    monkeypatch.setattr(Ingest, "receive", ended_first)
    ds = mammogram(breast(64, 48))
    with caplog.at_level(logging.WARNING):
        assoc.send_c_store(write(ds, tmp_path / "sent.dcm"))
        (entry,) = told(quiet_archive, "store")
    assert entry.uids == (ds.SOPInstanceUID,)
    assert entry.detail.startswith("the association ended before the image was stored; from ")
    assert "No such file" not in caplog.text


@pytest.mark.parametrize(("verb", "sop_class"), [("find", FIND), ("move", MOVE), ("store", MAMMOGRAPHY)])
def test_who_may_not_is_told(
    quiet_archive: Archive, caplog: pytest.LogCaptureFixture, verb: str, sop_class: str
) -> None:
    entity = AE("STRANGER" if verb != "store" else "VIEWER")
    entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", quiet_archive.address.port)
    identifier = client.image_identifier("1.2.3")
    with caplog.at_level(logging.WARNING):
        if verb == "find":
            status = [one for one, _ in assoc.send_c_find(identifier, sop_class)][-1]
        elif verb == "move":
            status = [one for one, _ in assoc.send_c_move(identifier, "VIEWER", sop_class)][-1]
        else:
            ds = mammogram(breast(64, 64))
            ds.file_meta = Dataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            status = assoc.send_c_store(ds)
        assoc.release()
    assert status.Status == 0x0124
    (entry,) = told(quiet_archive, verb)
    assert (entry.who, entry.outcome) == (entity.ae_title, "refused: 0124")
    assert any(entity.ae_title in line and "0124" in line for line in caplog.messages)


def test_unknown_destination_and_what_a_destination_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    destination = AE("FULL")
    destination.add_supported_context(MAMMOGRAPHY)
    server: Any = destination.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0xA900)]
    )
    peers = [
        {"ae_title": "MODALITY", "allow": ["echo", "store"]},
        {"ae_title": "FULL", "host": "127.0.0.1", "port": server.server_address[1], "allow": ["move"]},
    ]
    settings = settings_for(tmp_path / "archive", peers=peers, archivist={"enabled": False})
    try:
        with Node(settings) as node, caplog.at_level(logging.WARNING):
            archive = Archive(node, None)  # type: ignore[arg-type]
            held = stored(archive, tmp_path)
            identifier = client.image_identifier(held.study_instance_uid)
            for title, status in (("NOWHERE", 0xA801), ("FULL", 0xA702)):
                answer = client.move(identifier, archive.address, calling="FULL", destination=title)
                assert answer.Status == status
            entries = wait_for(lambda: [one for one in told(archive, "move") if "FULL" in one.detail], what="the move")
            assert "A900 answered 1 times" in entries[0].detail
            assert any("NOWHERE" in one.detail for one in told(archive, "move"))
            assert any("NOWHERE" in line for line in caplog.messages)
            assert any(held.sop_instance_uid in line and "FULL answered A900" in line for line in caplog.messages)
    finally:
        server.shutdown()


def test_error_comments_hold_the_reason_and_no_folder() -> None:
    uid = generate_uid()
    duplicate = of_error(Duplicate(f"{uid}: another data set is held under this SOP Instance UID"), STORE_ERRORS)
    assert duplicate.ErrorComment.startswith("another data set is held")
    full = StoreFull("5 bytes free below /srv/archive/of/ours, 10 must stay free")
    assert (of_error(full, STORE_ERRORS).Status, "/srv" in of_error(full, STORE_ERRORS).ErrorComment) == (0xA700, False)
    assert "/srv" in reason_text(full, STORE_ERRORS), "the operator wants to know"
    missing = of_error(ObjectMissing("object 1 is not in /srv/archive/objects"), STORE_ERRORS)
    assert "/srv" not in missing.ErrorComment


def test_the_same_rejected_association_is_recorded_once_a_minute() -> None:
    entries: list[TrailEntry] = []
    refusals = Refusals(entries.append)
    for _ in range(100):
        refusals.of_association("SCANNER", "10.1.2.3", "no such peer in config.yaml")
    refusals.of_association("SCANNER", "10.1.2.4", "no such peer in config.yaml")
    assert [one.detail for one in entries] == [f"no such peer in config.yaml; from 10.1.2.{last}" for last in (3, 4)]


def test_refusals_of_one_address_do_not_fill_the_trail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refusal names another image or another AE title. Refusals of other addresses are still recorded."""
    now = [1000.0]
    monkeypatch.setattr("node.dimse.associations.refusals.time", SimpleNamespace(monotonic=lambda: now[0]))
    entries: list[TrailEntry] = []
    refusals = Refusals(entries.append)

    def caller(address: str) -> Any:
        return SimpleNamespace(requestor=SimpleNamespace(ae_title="STRANGER", address=address))

    for at in range(900):
        refusals.of_request(caller("10.1.2.3"), "store", 0x0124, "may not store", (f"1.2.{at}",))
        refusals.of_association(f"STRANGER{at}", "10.1.2.3", "no such peer in config.yaml")
    assert len(entries) == 1000
    refusals.of_request(caller("10.1.2.4"), "find", 0x0124, "may not query")
    assert len(entries) == 1001
    now[0] += 60
    for _ in range(2):
        refusals.of_request(caller("10.1.2.3"), "find", 0x0124, "may not query")
    assert [one.detail for one in entries[1001:]] == [
        "may not query; from 10.1.2.3 (and 800 more from there, which were left out)",
        "may not query; from 10.1.2.3",
    ]


def test_verbose_names_who_is_connected(quiet_archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "node.dimse.associations.connection_log"):
        entity = AE("MODALITY")
        entity.add_requested_context(VERIFICATION)
        entity.associate("127.0.0.1", quiet_archive.address.port).release()
        wait_for(lambda: any("released" in line for line in caplog.messages), what="the release in the log")
    assert "Association of MODALITY from 127.0.0.1 accepted" in caplog.messages


def test_who_is_not_listed_may_only_echo_as_shipped() -> None:
    assert load(SHIPPED).unknown_peers.allow == ("echo",)
    assert load(SHIPPED).metrics.host == "127.0.0.1"


# --- configuration and commands ---------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [{"host": "10.1.2.3"}, {"port": 104}])
def test_host_and_port_belong_together(half: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="host and port belong together"):
        parse({"peers": [{"ae_title": "A", **half}]}, "test")


def test_a_taken_port_is_named_and_no_other(tmp_path: Path) -> None:
    with dead_port() as port, pytest.raises(ConfigError) as raised:
        Node(settings_for(tmp_path / "archive", node={"port": port})).start()
    assert f"node.port {port} on 127.0.0.1" in str(raised.value)
    assert "tls" not in str(raised.value)


def test_a_root_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"storage\.root .* cannot be used"):
            Node(settings_for(root))


def test_a_label_on_a_study_that_is_not_held_is_an_error(quiet_archive: Archive, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"storage: {{root: {quiet_archive.node.store.root}}}")
    ran = CliRunner().invoke(app, ["hold-label", "add", "teaching", "--study", "1.2.3", "--config", str(config)])
    assert isinstance(ran.exception, UsageError)
    assert "1.2.3 is not held" in str(ran.exception)
    assert quiet_archive.node.index.holds.labels() == []


def test_an_odd_affected_uid_is_recorded_short(quiet_archive: Archive) -> None:
    sender = RawSender(quiet_archive)
    assert sender.send(b"no data set", sop_instance="1.2.3").Status & 0xF000 == 0xC000
    assert told(quiet_archive, "store")[0].uids == ("1.2.3",)
    sender.assoc.release()


def test_an_image_of_another_patient_under_a_known_study_is_in_the_trail(
    quiet_archive: Archive, tmp_path: Path
) -> None:
    held = stored(quiet_archive, tmp_path)
    other = mammogram(breast(64, 48), SOPInstanceUID="1.2.3.9", PatientID="P0002")
    other.StudyInstanceUID = held.study_instance_uid
    path = write(other, tmp_path / "other.dcm")
    client.store([path], quiet_archive.address, calling="MODALITY", each=lambda *_: None)

    def noted() -> bool:
        entries = [record.entry for record in quiet_archive.node.index.trail.records()]
        return ("1.2.3.9",) in [one.uids for one in entries if ANOTHER_PATIENT in one.detail]

    wait_for(noted, what="a note in the trail")
