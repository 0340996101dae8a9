"""The tables of the index, as SQLAlchemy Core. ``storage/migrations`` creates exactly these.

patient ─< study ─< series ─< instance ─< rendition. Each level carries the columns that queries narrow by
and, in ``attributes``, its attributes in the DICOM JSON model, from which C-FIND matches exactly and answers.
Key columns hold values as SQL compares them: person names folded (storage.dicom.levels.fold_name), times filled up
to HHMMSS.FFFFFF, everything else as DICOM writes it; all are compared by code point, on every database.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(width: int) -> String:
    """Text compared by code point, as ranges and prefixes need it; PostgreSQL would compare by locale."""
    return String(width).with_variant(String(width, collation="C"), "postgresql")


Key = Integer().with_variant(BigInteger, "postgresql")

patient = Table(
    "patient",
    metadata,
    Column("key", Key, primary_key=True),
    Column("identity", _text(160), nullable=False, unique=True),
    Column("patient_id", _text(64), nullable=False, index=True),
    Column("name", _text(200), nullable=False, index=True),
    Column("birth_date", _text(8), nullable=False, index=True),
    Column("sex", _text(16), nullable=False),
    Column("attributes", JSON, nullable=False),
)

study = Table(
    "study",
    metadata,
    Column("key", Key, primary_key=True),
    Column("patient_key", ForeignKey("patient.key"), nullable=False, index=True),
    Column("study_instance_uid", _text(64), nullable=False, unique=True),
    Column("study_date", _text(8), nullable=False),
    Column("study_time", _text(16), nullable=False),
    Column("accession_number", _text(64), nullable=False, index=True),
    Column("study_id", _text(64), nullable=False),
    Column("attributes", JSON, nullable=False),
    # of a study that was ever amended: the attributes of patient and study as they were received, and the amendments
    # that apply; the columns above hold what comes of them
    Column("received", JSON(none_as_null=True), nullable=True),
    Column("amended", JSON(none_as_null=True), nullable=True),
    Index("ix_study_date_time", "study_date", "study_time"),
)

series = Table(
    "series",
    metadata,
    Column("key", Key, primary_key=True),
    Column("study_key", ForeignKey("study.key"), nullable=False, index=True),
    Column("series_instance_uid", _text(64), nullable=False, index=True),
    Column("modality", _text(16), nullable=False),
    Column("attributes", JSON, nullable=False),
    UniqueConstraint("study_key", "series_instance_uid"),
)

instance = Table(
    "instance",
    metadata,
    Column("key", Key, primary_key=True),
    Column("series_key", ForeignKey("series.key"), nullable=False, index=True),
    Column("sop_instance_uid", _text(64), nullable=False, unique=True),
    Column("sop_class_uid", _text(64), nullable=False),
    Column("transfer_syntax_uid", _text(64), nullable=False),
    Column("instance_number", Integer, nullable=True),
    Column("attributes", JSON, nullable=False),
    Column("original_digest", String(64), nullable=False, index=True),
    Column("original_bytes", BigInteger, nullable=False),
    Column("pixel_bytes", BigInteger, nullable=False),
    Column("pixel_warning", Text, nullable=False),
    Column("calling_aet", String(16), nullable=False),
    Column("received_at", DateTime, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    # what the reason is about (storage.records.ReasonCode)
    Column("reason_code", String(16), nullable=False),
    Column("rendition_key", Key, nullable=True),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", String(100), nullable=True),
    Column("lease_until", Float, nullable=True),
    Index("ix_instance_state", "state", "key"),
)

rendition = Table(
    "rendition",
    metadata,
    Column("key", Key, primary_key=True),
    Column("instance_key", ForeignKey("instance.key"), nullable=False, index=True),
    # one payload, two objects: with drawn noise, and the structure alone
    Column("derived_uid", _text(64), nullable=False, unique=True),
    Column("structure_uid", _text(64), nullable=False, unique=True),
    Column("base_digest", String(64), nullable=False, index=True),
    Column("base_bytes", BigInteger, nullable=False),
    Column("rendition_digest", String(64), nullable=False, index=True),
    Column("rendition_bytes", BigInteger, nullable=False),
    # the operating point for people, and exactly, so that a lost base is made again as it was
    Column("point", String(64), nullable=False),
    Column("operating_point", JSON, nullable=False),
    Column("upscaler", String(32), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("output_digest", String(64), nullable=False),
    Column("structure_digest", String(64), nullable=False),
    Column("psnr_db", Float, nullable=False),
    Column("fsim_mean", Float, nullable=False),
    Column("fsim_p5", Float, nullable=False),
    Column("tiles", Integer, nullable=False),
    # every further measure of the verdict by name
    Column("figures", JSON, nullable=False),
    Column("gated", Integer, nullable=False),
    Column("tried", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("verified_at", DateTime, nullable=False),
    # why it stands for its image no more; its UID keeps leading to the image, and its objects are not promised
    Column("withdrawn", Text, nullable=False, default=""),
    # the steps that the model was used with
    Column("recipe", String(64), nullable=False),
)

reverification = Table(
    "reverification",
    metadata,
    Column("key", Key, primary_key=True),
    Column("instance_key", ForeignKey("instance.key"), nullable=False),
    Column("base_digest", String(64), nullable=False),
    # digest of the model, its recipe and the gate that it was tried under
    Column("terms", String(64), nullable=False),
    Column("model", Text, nullable=False),
    # empty while it is being tried; then passed, same, kept or untried
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("tried_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", String(100), nullable=True),
    Column("lease_until", Float, nullable=True),
    UniqueConstraint("instance_key", "base_digest", "terms"),
)

model_file = Table(
    "model_file",
    metadata,
    Column("key", Key, primary_key=True),
    Column("upscaler", String(32), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    UniqueConstraint("upscaler", "weights_digest", "name"),
)
"""The files of the models that renditions were made with, kept as objects."""

quarantine = Table(
    "quarantine",
    metadata,
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("sop_instance_uid", String(64), nullable=False, index=True),
    Column("calling_aet", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("arrived_at", DateTime, nullable=False),
)

job = Table(
    "job",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("paused", Integer, nullable=False),
    Column("requested_at", Float, nullable=True),
    # the newest scheduled time that was dealt with; what is due after it has yet to run
    Column("due_at", Float, nullable=False),
    Column("lease_owner", String(100), nullable=True),
    Column("lease_until", Float, nullable=True),
    Column("run_key", Key, nullable=True),
    # what the job itself wants to know at its next run, a scrub's place for instance
    Column("memory", JSON, nullable=False),
)

job_run = Table(
    "job_run",
    metadata,
    Column("key", Key, primary_key=True),
    Column("job", String(32), nullable=False),
    Column("owner", String(100), nullable=False),
    Column("cause", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("cancel", Integer, nullable=False),
    Column("report", JSON, nullable=False),
    Column("error", Text, nullable=False),
    Index("ix_job_run_job", "job", "key"),
)

damage = Table(
    "damage",
    metadata,
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("store", String(16), nullable=False),
    Column("instance_key", Key, nullable=True),
    Column("condition", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("moved_to", Text, nullable=False),
    Column("found_at", Float, nullable=False),
    Column("action", String(16), nullable=False),
    # what the instance said before and after, so that it can say it again once the object is whole
    Column("former_state", String(16), nullable=False),
    Column("former_reason", Text, nullable=False),
    Column("former_code", String(16), nullable=False),
    Column("set_reason", Text, nullable=False),
    Column("closed_at", Float, nullable=True),
    Column("outcome", Text, nullable=False),
)

report = Table(
    "report",
    metadata,
    Column("key", Key, primary_key=True),
    Column("kind", String(32), nullable=False),
    # of its files in the reports folder, without what tells JSON from HTML
    Column("name", String(64), nullable=False, unique=True),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("alarm", Integer, nullable=False),
    Column("summary", JSON, nullable=False),
    Index("ix_report_kind", "kind", "key"),
)
"""Every run of an audit or a validation."""

commitment = Table(
    "commitment",
    metadata,
    Column("key", Key, primary_key=True),
    Column("transaction_uid", _text(64), nullable=False, index=True),
    Column("calling_aet", String(16), nullable=False),
    Column("items", JSON, nullable=False),
    Column("duplicate", Integer, nullable=False),
    Column("report", JSON, nullable=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
    Column("lease_owner", String(100), nullable=True),
    Column("lease_until", Float, nullable=True),
    Column("asked_at", DateTime, nullable=False),
    Column("done_at", DateTime, nullable=True),
    Index("ix_commitment_state_due", "state", "due"),
)

pin = Table(
    "pin",
    metadata,
    Column("key", Key, primary_key=True),
    Column("instance_key", ForeignKey("instance.key"), nullable=False, index=True),
    Column("commitment_key", ForeignKey("commitment.key"), nullable=False),
    Column("until", Float, nullable=True),
)
original = Table(
    "original",
    metadata,
    Column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
    Column("form", String(16), nullable=False),
    Column("tier", String(8), nullable=False),
    Column("object_digest", String(64), nullable=True, index=True),
    Column("object_bytes", BigInteger, nullable=False),
    Column("to_pack", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("held_since", DateTime, nullable=False),
    Column("restored_at", DateTime, nullable=True),
    Column("purged_at", DateTime, nullable=True),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", String(100), nullable=True),
    Column("lease_until", Float, nullable=True),
    Index("ix_original_to_pack", "to_pack", "instance_key"),
    Index("ix_original_tier_form", "tier", "form"),
)
"""How each instance's original is held. ``instance.original_digest`` stays the digest of the received file."""

replica = Table(
    "replica",
    metadata,
    Column("instance_key", ForeignKey("instance.key"), primary_key=True),
    Column("peer", String(16), primary_key=True),
    Column("original_digest", String(64), nullable=False),
    # of the amendments that its header was sent with; empty for none
    Column("version", String(16), nullable=False),
    Column("acknowledged_at", DateTime, nullable=False),
)
"""Originals that a peer has: it answered their C-STORE with 0x0000."""

doomed = Table(
    "doomed",
    metadata,
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("tier", String(8), nullable=False),
    UniqueConstraint("digest", "tier"),
)
"""Objects that no row needs any more and that are still to be unlinked: rows change first, files go second."""

hold = Table(
    "hold",
    metadata,
    Column("key", Key, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("value", _text(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("placed_by", String(128), nullable=False),
    Column("placed_at", DateTime, nullable=False),
    Column("released_by", String(128), nullable=False),
    Column("released_at", DateTime, nullable=True),
    Column("release_reason", Text, nullable=False),
    Index("ix_hold_kind_value", "kind", "value"),
)

label = Table(
    "label",
    metadata,
    Column("key", Key, primary_key=True),
    Column("study_instance_uid", _text(64), nullable=False),
    Column("name", _text(128), nullable=False),
    UniqueConstraint("study_instance_uid", "name"),
)

amendment = Table(
    "amendment",
    metadata,
    Column("key", Key, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("target", _text(160), nullable=False),
    Column("changes", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("made_by", String(128), nullable=False),
    Column("made_at", DateTime, nullable=False),
    Column("undoes", Key, nullable=True, index=True),
    Index("ix_amendment_target", "target"),
)
"""Versions of headers: rows are only ever added. One that is undone has a row that says so."""

former_patient = Table(
    "former_patient",
    metadata,
    Column("study_key", ForeignKey("study.key", ondelete="CASCADE"), primary_key=True),
    Column("patient_id", _text(64), primary_key=True),
)
"""Patient IDs that a study went by before an amendment: legal holds on them keep holding it."""

reference = Table(
    "reference",
    metadata,
    Column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
    Column("uid", _text(64), primary_key=True),
)
"""SOP Instance UIDs that annotations reference."""

reference_copy = Table(
    "reference_copy",
    metadata,
    Column("uid", _text(64), primary_key=True),
    Column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("pairs", JSON, nullable=False),
    Column("made_at", DateTime, nullable=False),
)
"""Copies of annotations that peers were told of: their references point to reconstructions."""

tombstone = Table(
    "tombstone",
    metadata,
    Column("key", Key, primary_key=True),
    Column("uid", _text(64), nullable=False, unique=True),
    Column("original_uid", _text(64), nullable=False, index=True),
    Column("study_instance_uid", _text(64), nullable=False, index=True),
    Column("series_instance_uid", _text(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("deleted_by", String(128), nullable=False),
    Column("deleted_at", DateTime, nullable=False),
    # the row that it had; no other instance gets that key again
    Column("instance_key", Key, nullable=False, index=True),
    # whether the rows of the instance are gone
    Column("done", Integer, nullable=False),
    Column("lifted_at", DateTime, nullable=True),
)
"""SOP Instance UIDs, original and derived, of what was deleted: they do not come back unless that is lifted."""
class_label = Table(
    "class_label",
    metadata,
    Column("key", Key, primary_key=True),
    Column("sop_instance_uid", _text(64), nullable=False, unique=True),
    Column("class_name", _text(64), nullable=False),
    # whether its original is still kept for a validation
    Column("held", Integer, nullable=False),
)
"""What an image shows, as somebody said for a validation."""

trail = Table(
    "trail",
    metadata,
    Column("number", Key, primary_key=True),
    Column("at", String(32), nullable=False, index=True),
    Column("action", String(64), nullable=False),
    Column("who", String(128), nullable=False),
    Column("level", String(16), nullable=False),
    Column("uids", JSON, nullable=False),
    Column("rendition", String(16), nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)
"""The audit trail: rows are only ever added."""

archive = Table(
    "archive",
    metadata,
    Column("identity", String(36), primary_key=True),
)
"""One row: which archive this index is of. The change journal beside the objects names the same."""

change = Table(
    "change",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(32), nullable=False),
    Column("key", Text, nullable=False),
    # 0 where only columns changed that are written down without the rest of the row
    Column("whole", Integer, nullable=False),
    sqlite_autoincrement=True,
)
"""Rows that changed, in the order of the commits, marked by triggers (storage/index/change_capture.py)."""
