"""Fills an archive with a row of every kind, by a real node and its services."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from pydicom import Dataset
from sqlalchemy import select

from node.app import Node
from node.archive.intake.ingest import Receipt
from node.dimse import client
from storage.dicom.header_amendments import AmendmentKind
from storage.index.change_capture import TABLES
from storage.index.commitment_requests import CommitmentItem
from storage.index.connection import writing
from storage.index.integrity import Integrity, NewDamage
from storage.index.job_runs import Cause, JobRows, RunState
from storage.index.model_files import ModelFile, ModelRows
from storage.index.replicas import Replicas
from storage.index.report_rows import NewReport, ReportRows
from storage.index.tables import reference_copy, reverification, study
from storage.records import HoldKind, OriginalForm, Tier, TrailEntry
from tests.conftest import Archive, wait_for
from tests.support.annotations import presentation_state
from tests.support.index_rows import states_of
from tests.support.samples import breast, mammogram, write


def fill(node: Node, folder: Path) -> dict[str, str]:
    """Put something of every kind into a node. Returns the SOP Instance UIDs by name."""
    archive, index = Archive(node, None), node.index  # type: ignore[arg-type]
    sent = {"verified": mammogram(), "small": mammogram(breast(200, 200)), "deleted": mammogram(breast(180, 200))}
    sent["held"] = mammogram(breast(190, 200), PatientID="P0009")
    for ds in (sent["small"], sent["deleted"]):
        ds.StudyInstanceUID = sent["verified"].StudyInstanceUID
    sent["state"] = presentation_state(str(sent["verified"].StudyInstanceUID), [str(sent["verified"].SOPInstanceUID)])
    uids = {name: str(ds.SOPInstanceUID) for name, ds in sent.items()}
    for name, ds in sent.items():
        receive(node, ds, folder / f"{name}.dcm")
    for uid in uids.values():
        archive.settled(uid)

    def packed() -> bool:
        held = index.by_uid(uids["verified"])
        return held is not None and held.held is not None and held.held.form is OriginalForm.PACKED

    wait_for(packed, what="packing")
    uids["study"], uids["other study"] = (str(sent[name].StudyInstanceUID) for name in ("verified", "held"))
    _correct(node, uids, sent, folder)
    _look_after(node, uids)
    return uids


def receive(node: Node, ds: Dataset, path: Path) -> Receipt | None:
    """Send one data set over the network."""
    to = Archive(node, None).address  # type: ignore[arg-type]
    client.store([write(ds, path)], to, calling="MODALITY", each=lambda *_: None)
    return None


def _correct(node: Node, uids: dict[str, str], sent: dict[str, Dataset], folder: Path) -> None:
    services, index = node.archive, node.index
    hold = index.holds.add(HoldKind.STUDY, uids["study"], reason="released later", who="user:me")
    index.holds.release(hold.key, reason="over", who="user:me")
    index.holds.add(HoldKind.STUDY, uids["other study"], reason="court", who="user:me")
    index.holds.put_label("teaching", uids["study"], who="user:me")
    index.holds.put_label("gone", uids["study"], who="user:me")
    index.holds.take_label("gone", uids["study"], who="user:me")
    changes = {"00080050": {"vr": "SH", "Value": ["A17"]}}
    index.amendments.make(AmendmentKind.STUDY, uids["study"], changes, reason="typing error", who="user:me")
    moved = {"00100020": {"vr": "LO", "Value": ["P0002"]}}
    index.amendments.make(AmendmentKind.STUDY, uids["other study"], moved, reason="wrong patient", who="user:me")
    made = index.amendments.make(
        AmendmentKind.STUDY, uids["study"], {"00081030": {"vr": "LO", "Value": ["X"]}}, reason="no", who="user:me"
    )
    index.amendments.undo(made.amendment.number, reason="after all", who="user:me")
    services.deletion.delete("image", uids["deleted"], reason="not ours", who="user:me")
    index.classes.put({uids["verified"]: "cancer"}, who="user:me")
    other = mammogram(breast(210, 200), SOPInstanceUID=uids["small"])
    receive(node, other, folder / "other.dcm")
    receive(node, sent["deleted"], folder / "returns.dcm")
    wanted = CommitmentItem(str(sent["verified"].SOPClassUID), uids["verified"])
    key = node.commitments.add("1.2.9.1", "MODALITY", [wanted], due=0.0)
    wait_for(lambda: states_of(index.engine, "1.2.9.1") != ["requested"], what=f"commitment {key}")
    node.commitments.add("1.2.9.2", "MODALITY", [CommitmentItem("1.2", "1.2.3")], due=time.time() + 1e6)


def _look_after(node: Node, uids: dict[str, str]) -> None:
    index, rows = node.index, JobRows(node.index.engine)
    held = index.by_uid(uids["held"])
    assert held is not None
    rows.ensure(["task"])
    ticket = rows.begin("task", "me", 60.0, Cause.COMMAND)
    assert ticket is not None
    rows.heartbeat(ticket, 60.0, 1, 2, "half")
    rows.end(ticket, RunState.DONE, {"what": "came of it"}, "", done=2, total=2, text="all")
    ReportRows(index.engine).add(NewReport("audit", "audit-x", 1.0, 2.0, "sound", False, {"images": 1}))
    ModelRows(index.engine).add("mammo", "ab" * 32, [ModelFile("net", node.store.put(b"weights"), 7)])
    where = ("original", "hot", held.key, "damaged", "flipped", "", "reported")
    Integrity(index.engine).note(NewDamage("cd" * 32, *where))
    with writing(index.engine) as connection:
        tried = {"instance_key": held.key, "base_digest": "", "terms": "", "model": "", "outcome": "kept", "reason": ""}
        connection.execute(reverification.insert().values(**tried, tried_at=1.5, attempts=1))
        at = connection.execute(select(study.c.key)).scalar()
        assert at is not None
        copy = {"uid": "1.2.9.9", "instance_key": held.key, "pairs": [["1.2", "1.3"]], "made_at": held.received_at}
        connection.execute(reference_copy.insert().values(copy))
    Replicas(index.engine).acknowledged("ELSEWHERE", held)
    index.garbage.mark("ef" * 32, Tier.COLD)  # no such store is configured, so that the row stays
    node.archive.trail.append(TrailEntry("test", "user:me", "image", (uids["held"],), detail="ä \t \\"))


def tables_of(file: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table that a rebuild must restore, without leases, as SQLite has them."""
    connection = sqlite3.connect(file)
    found = {}
    for name in [*TABLES, "trail", "archive"]:
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')]
        lasting = ", ".join(f'"{one}"' for one in columns if not one.startswith("lease_"))
        found[name] = sorted(connection.execute(f'SELECT {lasting} FROM "{name}"').fetchall(), key=repr)
    connection.close()
    return found
