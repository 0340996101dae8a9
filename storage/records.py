"""The words of the archive as frozen dataclasses: what passes between storage and node."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

DicomJson = dict[str, Any]
"""Attributes in the DICOM JSON model (PS3.18 Annex F): ``{"00100010": {"vr": "PN", "Value": [...]}}``."""


class InstanceState(StrEnum):
    """Where one instance is in its life. Only RECEIVED is work to do; all others are at rest."""

    RECEIVED = "received"
    """Original durable, nothing decided yet. Served bit-exact."""
    VERIFIED = "verified"
    """A rendition passed the gate against this very original."""
    MEASURED = "measured"
    """A rendition was measured but not gated (profile ``paper``). Its original is never purged."""
    EXACT = "exact"
    """Not eligible, or nothing passed: bit-exact for ever. ``reason`` says why."""
    WITHDRAWN = "withdrawn"
    """Its rendition failed an audit (``reason`` says how) and stands for it no more. Served bit-exact."""
    FAILED = "failed"
    """The archivist could not finish (``reason`` says why). Served bit-exact; ``latent-pacs retry``."""


class ReasonCode(StrEnum):
    """What the reason of an instance is about, for programs; ``reason`` is for people."""

    NONE = ""
    """Nothing keeps it from being what its state says."""
    LEFT_OUT = "left out"
    """It is not to be reconstructed: the allow-list, its pixels or its header rule it out."""
    GATE = "gate"
    """A reconstruction was tried, and nothing passed the gate."""
    AUDIT = "audit"
    """An audit withdrew or flagged its rendition."""
    ORIGINAL_LOST = "original lost"
    """A scrub found its original damaged or missing."""
    PAYLOAD_LOST = "payload lost"
    """A scrub found its base or rendition damaged or missing."""
    OTHER = "other"
    """What went wrong or was decided otherwise, which ``reason`` alone tells."""


@dataclass(frozen=True)
class OperatingPoint:
    """How a base is made.

    ``scale``: downsampling per axis (1, 2, 4). ``coder``: name in storage/formats/coders.py. ``distance``: JPEG XL's
    Butteraugli distance; 0 for a lossless base. ``effort``: coder effort, 1 to 9. ``companded``: samples are mapped so
    that the image's own noise is alike at every grey level.
    """

    scale: int
    coder: str
    distance: float = 0.0
    effort: int = 7
    companded: bool = False

    def __str__(self) -> str:
        lossy = f" d{self.distance:.3g}" if self.distance else ""
        return f"x{self.scale} {self.coder}{lossy}{' companded' if self.companded else ''}"


@dataclass(frozen=True)
class Levels:
    """The attributes of one instance at the four levels of the Query/Retrieve model (PS3.4 C.6)."""

    patient: DicomJson
    study: DicomJson
    series: DicomJson
    instance: DicomJson


@dataclass(frozen=True)
class NewInstance:
    """Everything ingest knows when it commits an instance."""

    sop_instance_uid: str
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    levels: Levels
    original_digest: str
    original_bytes: int
    pixel_bytes: int
    """Rows x columns x samples x frames x allocated bytes: what the pixels take uncompressed; 0 without pixels."""
    calling_aet: str
    references: tuple[str, ...] = ()
    """SOP Instance UIDs that it references, where it is an annotation."""
    pixel_warning: str = ""
    """Why the pixels cannot be trusted (short, odd, undecodable); empty when they are sound."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one reconstruction against its own original.

    ``psnr_db``, ``fsim_mean``, ``fsim_p5``: of what is served, beside the paper's figures; they gate nothing. PSNR is
    over tiles with breast, its peak the display window's width; FSIM over 256 x 256 tiles with breast in them.
    ``figures``: every further measure by name (docs/METRICS.md). ``failures``: one sentence per threshold missed;
    empty means passed.
    """

    psnr_db: float
    fsim_mean: float
    fsim_p5: float
    tiles: int
    figures: dict[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    gated: bool = True

    @property
    def passed(self) -> bool:
        return self.gated and not self.failures


@dataclass(frozen=True)
class Thresholds:
    """What a reconstruction must keep to against its own original; config.yaml says where each value comes from.

    Of the structure (the reconstruction before noise is drawn):

    - ``lines``: 99.9th percentile of coherent error along lines at widths of 1.2, 2.5 and 5 pixels, in units of the
      original's noise in the same filters, the worst tenth of all squares left out; ``lines_most`` times that at any
      pixel;
    - ``lost``: share of the RMS of each octave band (about 2, 4, 8 and 16 pixels) that is lost;
    - ``shift`` of any tile's mean, and ``slow``, the RMS of the error below all bands, in window widths;
    - ``outside``: greatest error out of the breast, in window widths;
    - ``speck``: strength (contrast over what noise does to the same filter) from which a bright speck counts, and
      ``speck_near`` for specks near two such ones; ``speck_least`` and ``speck_most``: share of its contrast that it
      must keep and may not exceed; ``speck_new``: strength from which a speck counts as invented where the original
      is less than half as strong.

    Of what is served: ``spectrum_db`` of each band's energy over the original's, for the image, and
    ``spectrum_tile_db`` in 95% of its tiles; ``repeat``: greatest autocorrelation of what was drawn, beyond 48
    pixels; ``quiet``: greatest change by drawing where the original is flat, in window widths.
    """

    lines: tuple[float, float, float] = (4.3, 1.8, 1.0)
    lines_most: float = 1.8
    lost: tuple[float, float, float, float] = (1.05, 1.0, 0.75, 0.35)
    shift: float = 0.002
    slow: float = 0.004
    outside: float = 0.1
    speck: float = 5.0
    speck_near: float = 4.0
    speck_least: float = 0.95
    speck_most: float = 1.05
    speck_new: float = 6.0
    spectrum_db: float = 1.0
    spectrum_tile_db: float = 2.0
    repeat: float = 0.1
    quiet: float = 0.002


@dataclass(frozen=True)
class Trial:
    """One operating point tried on one image, kept for ``instance show``.

    ``sample``: it was tried on a sample of the image only, and ``payload_bytes`` is an estimate.
    """

    point: str
    upscaler: str
    payload_bytes: int
    failures: tuple[str, ...]
    seconds: float
    sample: bool = False


@dataclass(frozen=True)
class NewRendition:
    """A rendition about to be committed, beside the base that it belongs to."""

    derived_uid: str
    structure_uid: str
    base_digest: str
    base_bytes: int
    rendition_digest: str
    rendition_bytes: int
    point: OperatingPoint
    upscaler: str
    weights_digest: str
    output_digest: str
    structure_digest: str
    verdict: Verdict
    tried: tuple[Trial, ...]
    seconds: float
    recipe: str = ""
    """How the model was used: its sampling steps."""


@dataclass(frozen=True)
class StoredRendition:
    """A rendition row.

    It stands for two objects: with drawn noise, ``derived_uid`` and ``output_digest``; without, ``structure_uid`` and
    ``structure_digest``. ``point`` is for people, ``operating_point`` is how the base was made.
    """

    derived_uid: str
    structure_uid: str
    base_digest: str
    base_bytes: int
    rendition_digest: str
    rendition_bytes: int
    point: str
    operating_point: OperatingPoint
    upscaler: str
    weights_digest: str
    output_digest: str
    structure_digest: str
    psnr_db: float
    fsim_mean: float
    fsim_p5: float
    gated: bool
    seconds: float
    verified_at: datetime

    @property
    def payload_bytes(self) -> int:
        return self.base_bytes + self.rendition_bytes

    def uid(self, *, draw: bool) -> str:
        """The SOP Instance UID of the object with drawn noise, or of the one without."""
        return self.derived_uid if draw else self.structure_uid

    def pixel_digest(self, *, draw: bool) -> str:
        """The digest of that object's pixels."""
        return self.output_digest if draw else self.structure_digest


class OriginalForm(StrEnum):
    """How an original is held."""

    VERBATIM = "verbatim"
    """The received file itself."""
    PACKED = "packed"
    """Losslessly smaller (storage/formats/packed_original.py); the same bytes come back."""
    PURGED = "purged"
    """Removed by retention: what is left is the reconstruction that was verified against it."""


class Tier(StrEnum):
    """Which object store holds an original."""

    HOT = "hot"
    """``storage.root``."""
    COLD = "cold"
    """``originals.path``."""


@dataclass(frozen=True)
class HeldOriginal:
    """Where and how one original is held. ``note``: why it stays verbatim. Purged ones have no object."""

    instance_key: int
    original_digest: str
    form: OriginalForm
    tier: Tier
    object_digest: str
    object_bytes: int
    note: str
    held_since: datetime
    restored_at: datetime | None
    purged_at: datetime | None

    @property
    def purged(self) -> bool:
        return self.form is OriginalForm.PURGED


@dataclass(frozen=True)
class OriginalClaim:
    """The right to pack or move one original until the lease runs out."""

    original: HeldOriginal
    sop_instance_uid: str
    owner: str
    attempts: int


@dataclass(frozen=True)
class Purgeable:
    """An original that the rules allow to remove: verified, aged, not pinned, free of holds."""

    original: HeldOriginal
    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str
    rendition: StoredRendition


class HoldKind(StrEnum):
    """What a legal hold covers."""

    STUDY = "study"
    PATIENT = "patient"
    LABEL = "label"


@dataclass(frozen=True)
class Hold:
    """A legal hold: no original of what it covers is removed until it is released."""

    key: int
    kind: HoldKind
    value: str
    reason: str
    placed_by: str
    placed_at: datetime
    released_by: str
    released_at: datetime | None
    release_reason: str


@dataclass(frozen=True)
class ClassLabel:
    """What an image shows, for a validation. ``held``: its original is kept until one has used it."""

    sop_instance_uid: str
    class_name: str
    held: bool


@dataclass(frozen=True)
class LabelledView:
    """An image with the attributes that tell its laterality and view (DICOM JSON), its own and its series'."""

    sop_instance_uid: str
    instance: DicomJson
    series: DicomJson


@dataclass(frozen=True)
class TrailEntry:
    """Something that happened, for the audit trail. ``level`` says what the ``uids`` are (study, image, patient ...).

    ``who``: a peer's AE title, ``user:NAME`` of the command line, or ``job:NAME``. ``rendition``: original or
    reconstructed, where that matters.
    """

    action: str
    who: str
    level: str = ""
    uids: tuple[str, ...] = ()
    rendition: str = ""
    outcome: str = "success"
    detail: str = ""


@dataclass(frozen=True)
class TrailRecord:
    """An entry as it stands in the trail: numbered, dated (UTC, ISO 8601), and chained to the one before.

    ``digest`` is the SHA-256 of ``previous`` and everything else in the record.
    """

    number: int
    at: str
    entry: TrailEntry
    previous: str
    digest: str


@dataclass(frozen=True)
class OriginalTotals:
    """What ``latent-pacs status`` says of originals, in counts and bytes on disk."""

    verbatim: int
    verbatim_bytes: int
    packed: int
    packed_bytes: int
    cold: int
    cold_bytes: int
    """Of those, verbatim or packed, the ones in the cold store."""
    purged: int
    to_pack: int


@dataclass(frozen=True)
class Applied:
    """An amendment as it applies to one study. ``at``: when it was made, UTC, ISO 8601; ``changes``: new values."""

    number: int
    at: str
    changes: DicomJson


@dataclass(frozen=True)
class StoredInstance:
    """An instance row, with its current rendition where it has one."""

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
    """Where its original is; None only for rows made by hand."""
    amended: tuple[Applied, ...] = ()
    """The amendments that apply to its header."""

    @property
    def purged(self) -> bool:
        return self.held is not None and self.held.purged

    @property
    def original_lost(self) -> bool:
        """A scrub found the original damaged or missing; what is left is the rendition."""
        return self.reason_code is ReasonCode.ORIGINAL_LOST


@dataclass(frozen=True)
class ReferencingCopy:
    """A copy of an annotation under a UID of its own. ``pairs``: UIDs referenced there, and those in their place."""

    uid: str
    instance_key: int
    pairs: tuple[tuple[str, str], ...]
    made_at: datetime


@dataclass(frozen=True)
class Claim:
    """The right to work on one instance until the lease runs out."""

    key: int
    sop_instance_uid: str
    original_digest: str
    attempts: int
    owner: str


@dataclass(frozen=True)
class Quarantined:
    """An object that arrived under a UID already held, with other content."""

    digest: str
    sop_instance_uid: str
    calling_aet: str
    reason: str
    arrived_at: datetime


@dataclass(frozen=True)
class HoldingCounts:
    """What ``latent-pacs status`` prints. Bytes are of objects on disk; pixel bytes are uncompressed."""

    by_state: dict[str, int]
    bytes_by_kind: dict[str, int]
    backlog: int
    quarantined: int
    reconstructable_pixel_bytes: int
    reconstructable_payload_bytes: int
    all_pixel_bytes: int
    all_hot_bytes: int
    """Payload bytes of reconstructable images plus original bytes of everything that is only held exact."""
    left_out: dict[str, int]
    """Instances in state EXACT by reason, one of ``storage.ineligibility.LeftOut``, most first; ``other``: those whose
    reason is their own, such as what the gate measured or what a decoder said."""


@dataclass(frozen=True)
class ModelUse:
    """How many renditions one model has made."""

    upscaler: str
    weights_digest: str
    renditions: int
