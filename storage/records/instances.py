"""Instances: from the received attributes to the stored row, and the counts over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.records.originals import HeldOriginal
from storage.records.renditions import StoredRendition
from storage.records.states import RENDITION_STATES, InstanceState, ReasonCode

DicomJson = dict[str, Any]
"""Attributes in the DICOM JSON model (PS3.18 Annex F): ``{"00100010": {"vr": "PN", "Value": [...]}}``."""


@dataclass(frozen=True)
class Levels:
    """The attributes of one instance at the four levels of the Query/Retrieve model (PS3.4 C.6)."""

    patient: DicomJson
    study: DicomJson
    series: DicomJson
    instance: DicomJson


@dataclass(frozen=True)
class NewInstance:
    """An instance that ingest commits.

    ``pixel_bytes``: rows x columns x samples x frames x allocated bytes, uncompressed; 0 without pixels.
    ``references``: SOP Instance UIDs that an annotation references. ``pixel_warning``: why the pixels cannot be trusted
    (short, odd, undecodable); empty if they are sound.
    """

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    levels: Levels
    original_digest: str
    original_bytes: int
    pixel_bytes: int
    calling_aet: str
    references: tuple[str, ...] = ()
    pixel_warning: str = ""


@dataclass(frozen=True)
class Applied:
    """An amendment as it applies to one study. ``at``: when it was made, UTC, ISO 8601; ``changes``: new values."""

    number: int
    at: str
    changes: DicomJson


@dataclass(frozen=True)
class StoredInstance:
    """An instance row, with its current rendition if it has one.

    An image that waits to be encoded again keeps its ``rendition`` until a new one is committed, but peers do not get
    it (``served_rendition``). ``held``: None only if its row was lost on a damaged line of the change journal.
    ``amended``: the amendments that apply to its header.
    """

    key: int
    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    transfer_syntax_uid: str
    original_digest: str
    original_bytes: int
    pixel_bytes: int
    state: InstanceState
    reason: str
    reason_code: ReasonCode
    received_at: datetime
    calling_aet: str
    rendition: StoredRendition | None
    held: HeldOriginal | None = None
    amended: tuple[Applied, ...] = ()

    @property
    def served_rendition(self) -> StoredRendition | None:
        """The rendition that peers find and get. ``storage.index.rendition_rows.is_served`` is the same in SQL."""
        return self.rendition if self.state in RENDITION_STATES else None

    @property
    def purged(self) -> bool:
        return self.held is not None and self.held.purged

    @property
    def original_gone(self) -> bool:
        """Whether the original was purged or lost. ``storage.index.original_locations.is_gone`` is the same in SQL."""
        return self.purged or self.original_lost

    @property
    def original_lost(self) -> bool:
        """Whether a scrub found the original damaged or missing; the rendition remains."""
        return self.reason_code is ReasonCode.ORIGINAL_LOST


@dataclass(frozen=True)
class ReferencingCopy:
    """A copy of an annotation, with a UID of its own. ``pairs``: UIDs that the annotation references, each with its
    substitute in the copy."""

    uid: str
    instance_key: int
    pairs: tuple[tuple[str, str], ...]
    made_at: datetime


@dataclass(frozen=True)
class Claim:
    """A lease on one instance, to encode it."""

    key: int
    sop_instance_uid: str
    original_digest: str
    attempts: int
    owner: str


@dataclass(frozen=True)
class Quarantined:
    """An object that arrived under a UID that is held with other content, that was deleted or that was issued here."""

    digest: str
    sop_instance_uid: str
    calling_aet: str
    reason: str
    arrived_at: datetime


@dataclass(frozen=True)
class HoldingCounts:
    """The figures of ``latent-pacs status``. Bytes are of objects on disk; pixel bytes are uncompressed.

    ``damaged``: objects that were found damaged or missing, and are not whole again. ``left_out``: numbers of EXACT
    instances by the sentence of their ReasonCode, largest first; ``other`` counts those whose code has no sentence.
    """

    by_state: dict[str, int]
    bytes_by_kind: dict[str, int]
    backlog: int
    quarantined: int
    damaged: int
    reconstructable_pixel_bytes: int
    reconstructable_payload_bytes: int
    all_pixel_bytes: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class ModelUse:
    """How many renditions one model has made."""

    upscaler: str
    weights_digest: str
    renditions: int
