"""Patients, studies, series, instances, their originals and renditions."""

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
    String,
    Text,
    UniqueConstraint,
)

from storage.index.tables.columns import Key, code_point_text, lease_columns, table

patient = table(
    "patient",
    Column("key", Key, primary_key=True),
    Column("identity", code_point_text(160), nullable=False, index=True),
    Column("patient_id", code_point_text(64), nullable=False, index=True),
    Column("name", code_point_text(200), nullable=False, index=True),
    Column("birth_date", code_point_text(8), nullable=False, index=True),
    Column("sex", code_point_text(16), nullable=False),
    Column("attributes", JSON, nullable=False),
)
"""A patient has a row for each set of attributes that its studies came with, or were amended to. Rows with the same
identity are one patient."""

study = table(
    "study",
    Column("key", Key, primary_key=True),
    Column("patient_key", ForeignKey("patient.key"), nullable=False, index=True),
    Column("study_instance_uid", code_point_text(64), nullable=False, unique=True),
    Column("study_date", code_point_text(8), nullable=False),
    Column("study_time", code_point_text(16), nullable=False),
    Column("accession_number", code_point_text(64), nullable=False, index=True),
    Column("study_id", code_point_text(64), nullable=False),
    Column("attributes", JSON, nullable=False),
    # only for a study that was ever amended: its attributes and its patient's as received, and the amendments that
    # apply; all other columns hold the amended values
    Column("received", JSON(none_as_null=True), nullable=True),
    Column("amended", JSON(none_as_null=True), nullable=True),
    Index("ix_study_date_time", "study_date", "study_time"),
)

series = table(
    "series",
    Column("key", Key, primary_key=True),
    Column("study_key", ForeignKey("study.key"), nullable=False, index=True),
    Column("series_instance_uid", code_point_text(64), nullable=False, index=True),
    Column("modality", code_point_text(16), nullable=False),
    Column("attributes", JSON, nullable=False),
    UniqueConstraint("study_key", "series_instance_uid"),
)

instance = table(
    "instance",
    Column("key", Key, primary_key=True),
    Column("series_key", ForeignKey("series.key"), nullable=False, index=True),
    Column("sop_instance_uid", code_point_text(64), nullable=False, unique=True),
    Column("sop_class_uid", code_point_text(64), nullable=False),
    Column("transfer_syntax_uid", code_point_text(64), nullable=False),
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
    # a storage.records.ReasonCode
    Column("reason_code", String(32), nullable=False),
    Column("rendition_key", Key, nullable=True),
    Column("attempts", Integer, nullable=False),
    *lease_columns(),
    Index("ix_instance_state", "state", "attempts", "key"),
)

rendition = table(
    "rendition",
    Column("key", Key, primary_key=True),
    Column("instance_key", ForeignKey("instance.key"), nullable=False, index=True),
    # one payload represents two objects: with drawn noise, and the structure alone
    Column("derived_uid", code_point_text(64), nullable=False, unique=True),
    Column("structure_uid", code_point_text(64), nullable=False, unique=True),
    Column("base_digest", String(64), nullable=False, index=True),
    Column("base_bytes", BigInteger, nullable=False),
    Column("rendition_digest", String(64), nullable=False, index=True),
    Column("rendition_bytes", BigInteger, nullable=False),
    # a storage.records.OperatingPoint, from which a lost base is encoded again
    Column("point", JSON, nullable=False),
    Column("upscaler", String(32), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("output_digest", String(64), nullable=False),
    Column("structure_digest", String(64), nullable=False),
    Column("psnr_db", Float, nullable=False),
    Column("fsim_mean", Float, nullable=False),
    Column("fsim_p5", Float, nullable=False),
    Column("tiles", Integer, nullable=False),
    # the further measures of the verdict by name
    Column("figures", JSON, nullable=False),
    Column("gated", Integer, nullable=False),
    Column("tried", JSON, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("verified_at", DateTime, nullable=False, index=True),
    # why it no longer represents its image; its UIDs still lead to the image, and its objects are not expected
    Column("withdrawn", Text, nullable=False, default=""),
    # the sampling steps that the model was used with
    Column("recipe", String(64), nullable=False),
)

original = table(
    "original",
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
    *lease_columns(),
    Index("ix_original_to_pack", "to_pack", "tier", "attempts", "instance_key"),
    Index("ix_original_tier_form", "tier", "form"),
)
"""How each original is held. ``instance.original_digest`` is always the digest of the received file."""

model_file = table(
    "model_file",
    Column("key", Key, primary_key=True),
    Column("upscaler", String(32), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
    UniqueConstraint("upscaler", "weights_digest", "name"),
)
"""Files of the models that made renditions; each is kept as an object."""

quarantine = table(
    "quarantine",
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("sop_instance_uid", String(64), nullable=False, index=True),
    Column("calling_aet", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("arrived_at", DateTime, nullable=False),
)

reference = table(
    "reference",
    Column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
    Column("uid", code_point_text(64), primary_key=True),
)
"""SOP Instance UIDs that annotations reference."""

reference_copy = table(
    "reference_copy",
    Column("uid", code_point_text(64), primary_key=True),
    Column("instance_key", ForeignKey("instance.key", ondelete="CASCADE"), nullable=False, index=True),
    Column("pairs", JSON, nullable=False),
    Column("made_at", DateTime, nullable=False),
)
"""Copies of annotations that were announced to peers: their references name reconstructions."""

former_patient = table(
    "former_patient",
    Column("study_key", ForeignKey("study.key", ondelete="CASCADE"), primary_key=True),
    Column("patient_id", code_point_text(64), primary_key=True),
)
"""Patient IDs of a study before it was amended, and others that its images state: legal holds on them cover it too."""

archive = table("archive", Column("identity", String(36), primary_key=True))
"""One row: the identity of the archive. The change journal beside the objects has the same identity."""

change = table(
    "change",
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("name", String(32), nullable=False),
    Column("key", Text, nullable=False),
    # 0: only columns changed that are journalled without the rest of the row
    Column("whole", Integer, nullable=False),
    sqlite_autoincrement=True,
)
"""Changed rows in commit order, marked by triggers (storage/index/change_capture.py)."""
