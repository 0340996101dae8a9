"""Makes instances and renditions as services pass them to the index, without files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, select

from storage.dicom.levels import levels_of
from storage.index import Index
from storage.index.commitment_requests import CommitmentState, is_pinned
from storage.index.tables import commitment, instance
from storage.records import (
    Claim,
    NewInstance,
    NewRendition,
    OperatingPoint,
    Trial,
    Verdict,
)
from tests.support.samples import MAMMOGRAPHY, mammogram

PIXELS = np.zeros((4, 4), np.uint16)
POINT = OperatingPoint(2, "jpegxl", 0.3)
VERDICT = Verdict(38.5, 0.96, 0.94, 9, {"rmse": 2.5})


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'index.db'}"


def new_instance(
    uid: str = "1.2.3.1", *, patient_id: str = "P1", study_uid: str = "1.2.1", **changes: Any
) -> NewInstance:
    """The instance that ingest would commit for a mammogram of four by four pixels."""
    series_uid = changes.pop("series_uid", f"{study_uid}.7")
    ds = mammogram(
        PIXELS, SOPInstanceUID=uid, PatientID=patient_id, StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid
    )
    made = NewInstance(
        sop_instance_uid=uid,
        sop_class_uid=MAMMOGRAPHY,
        study_instance_uid=study_uid,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        levels=levels_of(ds),
        original_digest=digest(uid),
        original_bytes=1000,
        pixel_bytes=32,
        calling_aet="MODALITY",
    )
    return replace(made, **changes)


def new_rendition(derived_uid: str = "2.25.1", **changes: Any) -> NewRendition:
    made = NewRendition(
        derived_uid=derived_uid,
        structure_uid=f"{derived_uid}.9",
        base_digest=digest(f"base {derived_uid}"),
        base_bytes=70,
        rendition_digest=digest(f"rendition {derived_uid}"),
        rendition_bytes=30,
        point=POINT,
        upscaler="mammo",
        weights_digest=digest("weights"),
        output_digest=digest("output"),
        structure_digest=digest("structure"),
        verdict=VERDICT,
        tried=(Trial("x4 jpegxl d0.3", "mammo", 50, ("too coarse",), 1.5),),
        seconds=2.5,
    )
    return replace(made, **changes)


def digest(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()


def claimed(index: Index, owner: str = "worker", lease: float = 60.0) -> Claim:
    claim = index.claim(owner, lease)
    assert claim is not None
    return claim


def between_look_and_write(monkeypatch: pytest.MonkeyPatch, engine: Engine, act: Callable[[], object]) -> None:
    """Call ``act`` between the first connection of the next operation, which reads, and its second, which writes."""
    real = engine.connect

    def look() -> object:
        monkeypatch.undo()
        connection = real()
        monkeypatch.setattr(engine, "connect", write)
        return connection

    def write() -> object:
        monkeypatch.undo()
        act()
        return real()

    monkeypatch.setattr(engine, "connect", look)


def states_of(engine: Engine, transaction_uid: str) -> list[CommitmentState]:
    """The states of the storage commitment requests with that transaction UID, oldest first."""
    query = select(commitment.c.state).where(commitment.c.transaction_uid == transaction_uid)
    with engine.connect() as connection:
        return [CommitmentState(state) for state in connection.execute(query.order_by(commitment.c.key)).scalars()]


def has_pin(engine: Engine, instance_key: int) -> bool:
    """Whether a storage commitment protects an original now."""
    query = select(instance.c.key).where(instance.c.key == instance_key, is_pinned())
    with engine.connect() as connection:
        return connection.execute(query).first() is not None
