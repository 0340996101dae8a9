"""The first schema"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def text(width: int) -> sa.String:
    """Text compared by code point."""
    return sa.String(width).with_variant(sa.String(width, collation="C"), "postgresql")


def lease() -> tuple["sa.Column[Any]", "sa.Column[Any]"]:
    return sa.Column("lease_owner", sa.String(100), nullable=True), sa.Column("lease_until", sa.Float, nullable=True)


def upgrade() -> None:
    _create_levels()
    _create_instances()
    _create_renditions()
    _create_objects()
    _create_journal()
    _create_decisions()
    _create_jobs()
    _create_commitments()


def _create_levels() -> None:
    op.create_table(
        "patient",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("identity", text(160), nullable=False, unique=True),
        sa.Column("patient_id", text(64), nullable=False, index=True),
        sa.Column("name", text(200), nullable=False, index=True),
        sa.Column("birth_date", text(8), nullable=False, index=True),
        sa.Column("sex", text(16), nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
    )
    op.create_table(
        "study",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("patient_key", KEY, sa.ForeignKey("patient.key"), nullable=False, index=True),
        sa.Column("study_instance_uid", text(64), nullable=False, unique=True),
        sa.Column("study_date", text(8), nullable=False),
        sa.Column("study_time", text(16), nullable=False),
        sa.Column("accession_number", text(64), nullable=False, index=True),
        sa.Column("study_id", text(64), nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("received", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("amended", sa.JSON(none_as_null=True), nullable=True),
        sa.Index("ix_study_date_time", "study_date", "study_time"),
    )
    op.create_table(
        "series",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("study_key", KEY, sa.ForeignKey("study.key"), nullable=False, index=True),
        sa.Column("series_instance_uid", text(64), nullable=False, index=True),
        sa.Column("modality", text(16), nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.UniqueConstraint("study_key", "series_instance_uid"),
    )


def _create_instances() -> None:
    op.create_table(
        "instance",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("series_key", KEY, sa.ForeignKey("series.key"), nullable=False, index=True),
        sa.Column("sop_instance_uid", text(64), nullable=False, unique=True),
        sa.Column("sop_class_uid", text(64), nullable=False),
        sa.Column("transfer_syntax_uid", text(64), nullable=False),
        sa.Column("instance_number", sa.Integer, nullable=True),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("original_digest", sa.String(64), nullable=False, index=True),
        sa.Column("original_bytes", sa.BigInteger, nullable=False),
        sa.Column("pixel_bytes", sa.BigInteger, nullable=False),
        sa.Column("pixel_warning", sa.Text, nullable=False),
        sa.Column("calling_aet", sa.String(16), nullable=False),
        sa.Column("received_at", sa.DateTime, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("reason_code", sa.String(32), nullable=False),
        sa.Column("rendition_key", KEY, nullable=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        *lease(),
        sa.Index("ix_instance_state", "state", "key"),
    )
    op.create_table(
        "original",
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.Column("object_digest", sa.String(64), nullable=True, index=True),
        sa.Column("object_bytes", sa.BigInteger, nullable=False),
        sa.Column("to_pack", sa.Integer, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("held_since", sa.DateTime, nullable=False),
        sa.Column("restored_at", sa.DateTime, nullable=True),
        sa.Column("purged_at", sa.DateTime, nullable=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        *lease(),
        sa.Index("ix_original_to_pack", "to_pack", "instance_key"),
        sa.Index("ix_original_tier_form", "tier", "form"),
    )
    op.create_table(
        "replica",
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key"), primary_key=True),
        sa.Column("peer", sa.String(16), primary_key=True),
        sa.Column("original_digest", sa.String(64), nullable=False),
        sa.Column("version", sa.String(16), nullable=False),
        sa.Column("acknowledged_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "former_patient",
        sa.Column("study_key", KEY, sa.ForeignKey("study.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("patient_id", text(64), primary_key=True),
    )


def _create_renditions() -> None:
    op.create_table(
        "rendition",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key"), nullable=False, index=True),
        sa.Column("derived_uid", text(64), nullable=False, unique=True),
        sa.Column("structure_uid", text(64), nullable=False, unique=True),
        sa.Column("base_digest", sa.String(64), nullable=False, index=True),
        sa.Column("base_bytes", sa.BigInteger, nullable=False),
        sa.Column("rendition_digest", sa.String(64), nullable=False, index=True),
        sa.Column("rendition_bytes", sa.BigInteger, nullable=False),
        sa.Column("point", sa.JSON, nullable=False),
        sa.Column("upscaler", sa.String(32), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("output_digest", sa.String(64), nullable=False),
        sa.Column("structure_digest", sa.String(64), nullable=False),
        sa.Column("psnr_db", sa.Float, nullable=False),
        sa.Column("fsim_mean", sa.Float, nullable=False),
        sa.Column("fsim_p5", sa.Float, nullable=False),
        sa.Column("tiles", sa.Integer, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("gated", sa.Integer, nullable=False),
        sa.Column("tried", sa.JSON, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("verified_at", sa.DateTime, nullable=False),
        sa.Column("withdrawn", sa.Text, nullable=False, default=""),
        sa.Column("recipe", sa.String(64), nullable=False),
    )
    op.create_table(
        "reverification",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key"), nullable=False),
        sa.Column("base_digest", sa.String(64), nullable=False),
        sa.Column("terms", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("tried_at", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        *lease(),
        sa.UniqueConstraint("instance_key", "base_digest", "terms"),
    )


def _create_objects() -> None:
    op.create_table(
        "model_file",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("upscaler", sa.String(32), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("upscaler", "weights_digest", "name"),
    )
    op.create_table(
        "quarantine",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("sop_instance_uid", sa.String(64), nullable=False, index=True),
        sa.Column("calling_aet", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("arrived_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "reference",
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("uid", text(64), primary_key=True),
    )
    op.create_table(
        "reference_copy",
        sa.Column("uid", text(64), primary_key=True),
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key", ondelete="CASCADE"), nullable=False, index=True),
        sa.Column("pairs", sa.JSON, nullable=False),
        sa.Column("made_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "damage",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("store", sa.String(16), nullable=False),
        sa.Column("instance_key", KEY, nullable=True),
        sa.Column("condition", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("moved_to", sa.Text, nullable=False),
        sa.Column("found_at", sa.Float, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("former_state", sa.String(16), nullable=False),
        sa.Column("former_reason", sa.Text, nullable=False),
        sa.Column("former_code", sa.String(32), nullable=False),
        sa.Column("set_reason", sa.Text, nullable=False),
        sa.Column("closed_at", sa.Float, nullable=True),
        sa.Column("outcome", sa.Text, nullable=False),
    )
    op.create_table(
        "garbage",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.UniqueConstraint("digest", "tier"),
    )


def _create_journal() -> None:
    op.create_table(
        "archive",
        sa.Column("identity", sa.String(36), primary_key=True),
    )
    op.create_table(
        "change",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("whole", sa.Integer, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "trail",
        sa.Column("number", KEY, primary_key=True),
        sa.Column("at", sa.String(32), nullable=False, index=True),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("uids", sa.JSON, nullable=False),
        sa.Column("rendition", sa.String(16), nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    op.create_table(
        "tombstone",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("uid", text(64), nullable=False, unique=True),
        sa.Column("original_uid", text(64), nullable=False, index=True),
        sa.Column("study_instance_uid", text(64), nullable=False, index=True),
        sa.Column("series_instance_uid", text(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("deleted_by", sa.String(128), nullable=False),
        sa.Column("deleted_at", sa.DateTime, nullable=False),
        sa.Column("instance_key", KEY, nullable=False, index=True),
        sa.Column("rows_deleted", sa.Integer, nullable=False),
        sa.Column("return_allowed_at", sa.DateTime, nullable=True),
    )


def _create_decisions() -> None:
    op.create_table(
        "hold",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("value", text(128), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("placed_by", sa.String(128), nullable=False),
        sa.Column("placed_at", sa.DateTime, nullable=False),
        sa.Column("released_by", sa.String(128), nullable=False),
        sa.Column("released_at", sa.DateTime, nullable=True),
        sa.Column("release_reason", sa.Text, nullable=False),
        sa.Index("ix_hold_kind_value", "kind", "value"),
    )
    op.create_table(
        "label",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("study_instance_uid", text(64), nullable=False),
        sa.Column("name", text(128), nullable=False),
        sa.UniqueConstraint("study_instance_uid", "name"),
    )
    op.create_table(
        "class_label",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("sop_instance_uid", text(64), nullable=False, unique=True),
        sa.Column("class_name", text(64), nullable=False),
        sa.Column("held", sa.Integer, nullable=False),
    )
    op.create_table(
        "amendment",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("target", text(160), nullable=False),
        sa.Column("changes", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("made_by", sa.String(128), nullable=False),
        sa.Column("made_at", sa.DateTime, nullable=False),
        sa.Column("undoes", KEY, nullable=True, index=True),
        sa.Index("ix_amendment_target", "target"),
    )


def _create_jobs() -> None:
    op.create_table(
        "job",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("paused", sa.Integer, nullable=False),
        sa.Column("requested_at", sa.Float, nullable=True),
        sa.Column("due_at", sa.Float, nullable=False),
        *lease(),
        sa.Column("run_key", KEY, nullable=True),
        sa.Column("memory", sa.JSON, nullable=False),
    )
    op.create_table(
        "job_run",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("owner", sa.String(100), nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float, nullable=True),
        sa.Column("done", sa.BigInteger, nullable=False),
        sa.Column("total", sa.BigInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("cancel", sa.Integer, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Index("ix_job_run_job", "job", "key"),
    )
    op.create_table(
        "report",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False, unique=True),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("alarm", sa.Integer, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Index("ix_report_kind", "kind", "key"),
    )


def _create_commitments() -> None:
    op.create_table(
        "commitment",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("transaction_uid", text(64), nullable=False, index=True),
        sa.Column("calling_aet", sa.String(16), nullable=False),
        sa.Column("items", sa.JSON, nullable=False),
        sa.Column("duplicate", sa.Integer, nullable=False),
        sa.Column("report", sa.JSON, nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        *lease(),
        sa.Column("requested_at", sa.DateTime, nullable=False),
        sa.Column("closed_at", sa.DateTime, nullable=True),
        sa.Index("ix_commitment_state_due", "state", "due"),
    )
    op.create_table(
        "pin",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("instance_key", KEY, sa.ForeignKey("instance.key"), nullable=False, index=True),
        sa.Column("commitment_key", KEY, sa.ForeignKey("commitment.key"), nullable=False),
        sa.Column("until", sa.Float, nullable=True),
    )
