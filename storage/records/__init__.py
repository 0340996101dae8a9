"""The records of the archive as frozen dataclasses: what storage and node pass to each other."""

from storage.records.administration import ClassLabel, Hold, HoldKind, LabelledView, TrailEntry, TrailRecord
from storage.records.instances import (
    Applied,
    Claim,
    DicomJson,
    HoldingCounts,
    Levels,
    ModelUse,
    NewInstance,
    Quarantined,
    ReferencingCopy,
    StoredInstance,
)
from storage.records.originals import HeldOriginal, OriginalClaim, OriginalForm, OriginalTotals, Purgeable, Tier
from storage.records.renditions import NewRendition, OperatingPoint, StoredRendition, Thresholds, Trial, Verdict
from storage.records.states import RENDITION_STATES, InstanceState, ReasonCode
