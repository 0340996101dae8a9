"""Patients, studies, series, instances, their originals and renditions."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)

from storage.index.tables.columns import Key, column, lease_columns, table

patient = table(
    "patient",
    column("key", Key, primary_key=True),
    column("identity", String(160), index=True),
    column("patient_id", String(64), index=True),
    column("name", String(200), index=True),
    column("birth_date", String(8), index=True),
    column("sex", String(16)),
    column("attributes", JSON),
)
"""A patient has a row for each set of attributes that its studies came with, or were amended to. Rows with the same
identity are one patient."""

study = table(
    "study",
    column("key", Key, primary_key=True),
    column("patient_key", ForeignKey("patient.key"), index=True),
    column("study_instance_uid", String(64), unique=True),
    column("study_date", String(8)),
    column("study_time", String(16)),
    column("accession_number", String(64), index=True),
    column("study_id", String(64)),
    column("attributes", JSON),
    # only for a study that was ever amended: its attributes and its patient's as received, and the amendments that
    # apply; all other columns hold the amended values
    column("received", JSON(none_as_null=True), nullable=True),
    column("amended", JSON(none_as_null=True), nullable=True),
    Index("ix_study_date_time", "study_date", "study_time"),
)

series = table(
    "series",
    column("key", Key, primary_key=True),
    column("study_key", ForeignKey("study.key"), index=True),
    column("series_instance_uid", String(64), index=True),
    column("modality", String(16)),
    column("attributes", JSON),
    UniqueConstraint("study_key", "series_instance_uid"),
)

instance = table(
    "instance",
    column("key", Key, primary_key=True),
    column("series_key", ForeignKey("series.key"), index=True),
    column("sop_instance_uid", String(64), unique=True),
    column("sop_class_uid", String(64)),
    column("transfer_syntax_uid", String(64)),
    column("instance_number", Integer, nullable=True),
    column("attributes", JSON),
    column("original_digest", String(64), index=True),
    column("original_bytes", BigInteger),
    column("pixel_bytes", BigInteger),
    column("pixel_warning", Text),
    column("calling_aet", String(16)),
    column("received_at", DateTime),
    column("state", String(16)),
    column("reason", Text),
    # a storage.records.ReasonCode
    column("reason_code", String(32)),
    column("rendition_key", Key, nullable=True),
    column("attempts", Integer),
    *lease_columns(),
    Index("ix_instance_state", "state", "attempts", "key"),
)

rendition = table(
    "rendition",
    column("key", Key, primary_key=True),
    column("instance_key", ForeignKey("instance.key"), index=True),
    # one payload represents two objects: with drawn noise, and the structure alone
    column("derived_uid", String(64), unique=True),
    column("structure_uid", String(64), unique=True),
    column("base_digest", String(64), index=True),
    column("base_bytes", BigInteger),
    column("rendition_digest", String(64), index=True),
    column("rendition_bytes", BigInteger),
    # a storage.records.OperatingPoint, from which a lost base is encoded again
    column("point", JSON),
    column("upscaler", String(32)),
    column("weights_digest", String(64)),
    column("output_digest", String(64)),
    column("structure_digest", String(64)),
    column("psnr_db", Float),
    column("fsim_mean", Float),
    column("fsim_p5", Float),
    column("tiles", Integer),
    # the further measures of the verdict by name
    column("figures", JSON),
    column("gated", Integer),
    column("tried", JSON),
    column("seconds", Float),
    column("verified_at", DateTime, index=True),
    # why it no longer represents its image; its UIDs still lead to the image, and its objects are not expected
    column("withdrawn", Text, default=""),
    # the sampling steps that the model was used with
    column("recipe", String(64)),
    # the digest of what can change a grey level apart from the model
    column("numerics_digest", String(64), server_default=text("''")),
)

original = table(
    "original",
    column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
    column("form", String(16)),
    column("tier", String(8)),
    column("object_digest", String(64), nullable=True, index=True),
    column("object_bytes", BigInteger),
    column("to_pack", Integer),
    column("note", Text),
    column("held_since", DateTime),
    column("restored_at", DateTime, nullable=True),
    column("purged_at", DateTime, nullable=True),
    column("attempts", Integer),
    *lease_columns(),
    Index("ix_original_to_pack", "to_pack", "tier", "attempts", "instance_key"),
    Index("ix_original_tier_form", "tier", "form"),
)
"""How each original is held. ``instance.original_digest`` is always the digest of the received file."""

model_file = table(
    "model_file",
    column("key", Key, primary_key=True),
    column("upscaler", String(32)),
    column("weights_digest", String(64)),
    column("name", String(200)),
    column("digest", String(64), index=True),
    column("bytes", BigInteger),
    UniqueConstraint("upscaler", "weights_digest", "name"),
)
"""Files of the models that made renditions; each is kept as an object."""

quarantine = table(
    "quarantine",
    column("key", Key, primary_key=True),
    column("digest", String(64), unique=True),
    column("sop_instance_uid", String(64), index=True),
    column("calling_aet", String(16)),
    column("reason", Text),
    column("arrived_at", DateTime),
)

reference = table(
    "reference",
    column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
    column("uid", String(64), primary_key=True),
)
"""SOP Instance UIDs that annotations reference."""

reference_copy = table(
    "reference_copy",
    column("uid", String(64), primary_key=True),
    column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), index=True),
    column("pairs", JSON),
    column("made_at", DateTime),
)
"""Copies of annotations that were announced to peers: their references name what the peer gets."""

former_patient = table(
    "former_patient",
    column("study_key", ForeignKey("study.key", ondelete="CASCADE"), primary_key=True),
    column("patient_id", String(64), primary_key=True),
)
"""Patient IDs that a study had before it was amended, or that its images state. Legal holds on them cover it too."""

archive = table("archive", column("identity", String(36), primary_key=True))
"""One row: the identity of the archive. The change journal beside the objects has the same identity."""

change = table(
    "change",
    column("number", Integer, primary_key=True, autoincrement=True),
    column("name", String(32)),
    column("key", Text),
    # 0 if only columns changed that are journalled without the rest of the row
    column("whole", Integer),
    sqlite_autoincrement=True,
)
"""Changed rows in commit order, marked by triggers (storage/index/change_capture.py)."""
