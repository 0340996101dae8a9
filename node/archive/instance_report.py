"""The report on one image: how it is stored, how it was encoded, and what was measured.

It is made from the index and the objects, whether a node runs or not. Only small parts of a rendition are decoded.
Patient data is left out unless it is requested.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from node.codec.patches import decode_patches
from node.codec.points import decode_points
from node.codec.residuals import decode_residuals
from storage.errors import LatentPacsError, UnknownUid
from storage.formats.geometry import CELL
from storage.formats.payload import Rendition, decode_base, decode_rendition
from storage.index import Index
from storage.index.instance_queries import InstanceRows, OpenDamage, instance_rows
from storage.objects.store import ObjectStore
from storage.records import DicomJson, StoredInstance, StoredRendition, Tier


@dataclass(frozen=True)
class OriginalReport:
    """The original: ``digest`` and ``bytes`` are those of the received file. ``condition``: ``held``,
    ``purged``, or ``lost`` if a scrub or this report did not find the object. ``file``: the object, if it is held."""

    digest: str
    bytes: int
    transfer_syntax_uid: str
    transfer_syntax: str
    form: str
    store: str
    condition: str
    object_digest: str
    object_bytes: int
    note: str = ""
    restored_at: datetime | None = None
    purged_at: datetime | None = None
    file: Path | None = None


@dataclass(frozen=True)
class PayloadParts:
    """Bytes of the parts of a rendition's objects: the base's coded pixels, and the side information.

    The rest of both objects is the header, the padding mask and the verdict."""

    base_pixels: int
    noise: int
    repairs: int
    points: int
    patches: int


@dataclass(frozen=True)
class RepairCounts:
    """Local repairs of an image of ``rows`` x ``columns`` pixels. ``patched``: number of cells of 16 x 16 pixels that
    are stored exactly; ``repaired``: number of cells with coded residuals; shares are of the image's area. ``cells``,
    ``repairs``: these two sets of cells, bool, one value per cell; ``points``: (row, column) in pixels."""

    rows: int
    columns: int
    patched: int
    patched_share: float
    repaired: int
    repaired_share: float
    point_count: int
    cells: NDArray[np.bool_] | None = field(default=None, compare=False)
    repairs: NDArray[np.bool_] | None = field(default=None, compare=False)
    points: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RenditionReport(StoredRendition):
    """A rendition row, and what its objects say. ``current``: whether it is the image's current one.

    ``unreadable``: why its objects could not be read. The fields that come from them are then empty."""

    current: bool
    steps: int | None = None
    seed: int | None = None
    numerics: dict[str, str] = field(default_factory=dict)
    measured_uid: str = ""
    parts: PayloadParts | None = None
    repair_counts: RepairCounts | None = None
    unreadable: str = ""


@dataclass(frozen=True)
class Patient:
    name: str
    patient_id: str


@dataclass(frozen=True)
class InstanceReport:
    """What is known about one image. ``requested_uid``: the UID of the original or of a rendition, as requested."""

    requested_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    sop_class: str
    modality: str
    series_instance_uid: str
    study_instance_uid: str
    sent_by: str
    received_at: datetime
    state: str
    reason: str
    reason_code: str
    pixel_warning: str
    attempts: int
    pixel_bytes: int
    original: OriginalReport
    renditions: tuple[RenditionReport, ...]
    damage: tuple[OpenDamage, ...]
    quarantined: int
    patient: Patient | None = None

    @property
    def rendition(self) -> RenditionReport | None:
        """The rendition whose UID was requested, else the current one."""
        by_uid = next(
            (one for one in self.renditions if self.requested_uid in (one.derived_uid, one.structure_uid)), None
        )
        return by_uid or next((one for one in self.renditions if one.current), None)


def report_on(index: Index, stores: Mapping[Tier, ObjectStore], uid: str, *, patient: bool = False) -> InstanceReport:
    """The report on the image of an original or derived UID. Raises UnknownUid."""
    rows = instance_rows(index, uid)
    if rows is None:
        raise UnknownUid(
            f"no image is known by {uid!r}: give the SOP Instance UID of an original, or of a reconstruction that this "
            "archive sent"
        )
    instance = rows.instance
    return InstanceReport(
        requested_uid=uid,
        sop_instance_uid=instance.sop_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        sop_class=UID(instance.sop_class_uid).name,
        modality=rows.modality,
        series_instance_uid=instance.series_instance_uid,
        study_instance_uid=instance.study_instance_uid,
        sent_by=instance.calling_aet,
        received_at=instance.received_at,
        state=instance.state.value,
        reason=instance.reason,
        reason_code=instance.reason_code.value,
        pixel_warning=rows.pixel_warning,
        attempts=rows.attempts,
        pixel_bytes=instance.pixel_bytes,
        original=original_of(rows, index, stores),
        renditions=tuple(_rendition_of(row, instance, stores[Tier.HOT]) for row in rows.renditions),
        damage=rows.damage,
        quarantined=rows.quarantined,
        patient=_patient_of(rows.patient) if patient else None,
    )


def original_of(rows: InstanceRows, index: Index, stores: Mapping[Tier, ObjectStore]) -> OriginalReport:
    instance = rows.instance
    kept = index.originals.of_digest(instance.original_digest)
    assert kept is not None
    store = stores.get(kept.tier)
    file = store.path(kept.object_digest) if store is not None and not kept.purged else None
    held = file is not None and file.is_file() and not instance.original_lost
    return OriginalReport(
        digest=instance.original_digest,
        bytes=instance.original_bytes,
        transfer_syntax_uid=instance.transfer_syntax_uid,
        transfer_syntax=UID(instance.transfer_syntax_uid).name,
        form=kept.form.value,
        store=kept.tier.value,
        condition="purged" if kept.purged else "held" if held else "lost",
        object_digest=kept.object_digest,
        object_bytes=kept.object_bytes,
        note=kept.note,
        restored_at=kept.restored_at,
        purged_at=kept.purged_at,
        file=file if held else None,
    )


def _rendition_of(row: StoredRendition, instance: StoredInstance, store: ObjectStore) -> RenditionReport:
    row_fields = {name: getattr(row, name) for name in StoredRendition.__dataclass_fields__}
    row_fields["current"] = instance.rendition is not None and instance.rendition.derived_uid == row.derived_uid
    try:
        return RenditionReport(**row_fields, **_from_objects(row, store))
    except LatentPacsError as error:
        return RenditionReport(**row_fields, unreadable=str(error))


def _from_objects(row: StoredRendition, store: ObjectStore) -> dict[str, Any]:
    """The fields that are read from a rendition's objects. Raises ObjectMissing, ObjectDamaged, PayloadError."""
    made = decode_rendition(store.read(row.rendition_digest))
    base = decode_base(store.read(row.base_digest))
    return {
        "steps": made.steps,
        "seed": made.seed,
        "numerics": made.numerics,
        "measured_uid": made.measured_uid,
        "parts": PayloadParts(len(base.coded), len(made.noise), len(made.repairs), len(made.points), len(made.patches)),
        "repair_counts": _repair_counts_of(made, base.rows, base.columns),
    }


def _repair_counts_of(made: Rendition, rows: int, columns: int) -> RepairCounts:
    cells = decode_patches(made.patches).cells if made.patches else None
    repairs = decode_residuals(made.repairs).cells if made.repairs else None
    spots = decode_points(made.points).spots if made.points else ()
    points = tuple((spot.row, spot.column) for spot in spots)

    def share(mask: NDArray[np.bool_] | None, side: int) -> tuple[int, float]:
        count = 0 if mask is None else int(mask.sum())
        return count, min(count * side * side / (rows * columns), 1.0)

    return RepairCounts(rows, columns, *share(cells, CELL), *share(repairs, CELL), len(points), cells, repairs, points)


def _patient_of(attributes: DicomJson) -> Patient:
    def first(tag: str) -> Any:
        return (attributes.get(tag, {}).get("Value") or [""])[0]

    name = first("00100010")
    return Patient(name.get("Alphabetic", "") if isinstance(name, dict) else str(name), str(first("00100020")))
