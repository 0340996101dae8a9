"""The first schema"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "archive",
        sa.Column("identity", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("identity", name=op.f("pk_archive")),
    )
    op.create_table(
        "change",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("whole", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_change")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "amendment",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column(
            "target",
            sa.String(length=160).with_variant(sa.String(length=160, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("made_by", sa.String(length=128), nullable=False),
        sa.Column("made_at", sa.DateTime(), nullable=False),
        sa.Column("undoes", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_amendment")),
    )
    with op.batch_alter_table("amendment", schema=None) as batch_op:
        batch_op.create_index("ix_amendment_target", ["target"], unique=False)
        batch_op.create_index(batch_op.f("ix_amendment_undoes"), ["undoes"], unique=False)

    op.create_table(
        "class_label",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "sop_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "class_name",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_class_label")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_class_label_sop_instance_uid")),
    )
    op.create_table(
        "commitment",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "transaction_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("calling_aet", sa.String(length=16), nullable=False),
        sa.Column("items", sa.JSON(), nullable=False),
        sa.Column("duplicate", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due", sa.Float(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("asked_at", sa.DateTime(), nullable=False),
        sa.Column("done_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_commitment")),
    )
    with op.batch_alter_table("commitment", schema=None) as batch_op:
        batch_op.create_index("ix_commitment_state_due", ["state", "due"], unique=False)
        batch_op.create_index(batch_op.f("ix_commitment_transaction_uid"), ["transaction_uid"], unique=False)

    op.create_table(
        "damage",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("store", sa.String(length=16), nullable=False),
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=True),
        sa.Column("condition", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("moved_to", sa.Text(), nullable=False),
        sa.Column("found_at", sa.Float(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("former_state", sa.String(length=16), nullable=False),
        sa.Column("former_reason", sa.Text(), nullable=False),
        sa.Column("former_code", sa.String(length=16), nullable=False),
        sa.Column("set_reason", sa.Text(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_damage")),
    )
    with op.batch_alter_table("damage", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_damage_digest"), ["digest"], unique=False)

    op.create_table(
        "doomed",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("tier", sa.String(length=8), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_doomed")),
        sa.UniqueConstraint("digest", "tier", name=op.f("uq_doomed_digest")),
    )
    op.create_table(
        "hold",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column(
            "value",
            sa.String(length=128).with_variant(sa.String(length=128, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("placed_by", sa.String(length=128), nullable=False),
        sa.Column("placed_at", sa.DateTime(), nullable=False),
        sa.Column("released_by", sa.String(length=128), nullable=False),
        sa.Column("released_at", sa.DateTime(), nullable=True),
        sa.Column("release_reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_hold")),
    )
    with op.batch_alter_table("hold", schema=None) as batch_op:
        batch_op.create_index("ix_hold_kind_value", ["kind", "value"], unique=False)

    op.create_table(
        "job",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("paused", sa.Integer(), nullable=False),
        sa.Column("requested_at", sa.Float(), nullable=True),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("run_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=True),
        sa.Column("memory", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_job")),
    )
    op.create_table(
        "job_run",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("job", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=100), nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("cancel", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_job_run")),
    )
    with op.batch_alter_table("job_run", schema=None) as batch_op:
        batch_op.create_index("ix_job_run_job", ["job", "key"], unique=False)

    op.create_table(
        "label",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "study_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "name",
            sa.String(length=128).with_variant(sa.String(length=128, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_label")),
        sa.UniqueConstraint("study_instance_uid", "name", name=op.f("uq_label_study_instance_uid")),
    )
    op.create_table(
        "model_file",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("upscaler", sa.String(length=32), nullable=False),
        sa.Column("weights_digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_model_file")),
        sa.UniqueConstraint("upscaler", "weights_digest", "name", name=op.f("uq_model_file_upscaler")),
    )
    with op.batch_alter_table("model_file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_model_file_digest"), ["digest"], unique=False)

    op.create_table(
        "patient",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "identity",
            sa.String(length=160).with_variant(sa.String(length=160, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "patient_id",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "name",
            sa.String(length=200).with_variant(sa.String(length=200, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "birth_date",
            sa.String(length=8).with_variant(sa.String(length=8, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "sex", sa.String(length=16).with_variant(sa.String(length=16, collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_patient")),
        sa.UniqueConstraint("identity", name=op.f("uq_patient_identity")),
    )
    with op.batch_alter_table("patient", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_patient_birth_date"), ["birth_date"], unique=False)
        batch_op.create_index(batch_op.f("ix_patient_name"), ["name"], unique=False)
        batch_op.create_index(batch_op.f("ix_patient_patient_id"), ["patient_id"], unique=False)

    op.create_table(
        "quarantine",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("calling_aet", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("arrived_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_quarantine")),
        sa.UniqueConstraint("digest", name=op.f("uq_quarantine_digest")),
    )
    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_quarantine_sop_instance_uid"), ["sop_instance_uid"], unique=False)

    op.create_table(
        "report",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("alarm", sa.Integer(), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_report")),
        sa.UniqueConstraint("name", name=op.f("uq_report_name")),
    )
    with op.batch_alter_table("report", schema=None) as batch_op:
        batch_op.create_index("ix_report_kind", ["kind", "key"], unique=False)

    op.create_table(
        "tombstone",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "uid", sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "original_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "study_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "series_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("deleted_by", sa.String(length=128), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=False),
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("lifted_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tombstone")),
        sa.UniqueConstraint("uid", name=op.f("uq_tombstone_uid")),
    )
    with op.batch_alter_table("tombstone", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tombstone_instance_key"), ["instance_key"], unique=False)
        batch_op.create_index(batch_op.f("ix_tombstone_original_uid"), ["original_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_tombstone_study_instance_uid"), ["study_instance_uid"], unique=False)

    op.create_table(
        "trail",
        sa.Column("number", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("uids", sa.JSON(), nullable=False),
        sa.Column("rendition", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_trail")),
    )
    with op.batch_alter_table("trail", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_trail_at"), ["at"], unique=False)

    op.create_table(
        "study",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("patient_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "study_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "study_date",
            sa.String(length=8).with_variant(sa.String(length=8, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "study_time",
            sa.String(length=16).with_variant(sa.String(length=16, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "accession_number",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "study_id",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("received", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("amended", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(["patient_key"], ["patient.key"], name=op.f("fk_study_patient_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_study")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_study_study_instance_uid")),
    )
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_study_accession_number"), ["accession_number"], unique=False)
        batch_op.create_index("ix_study_date_time", ["study_date", "study_time"], unique=False)
        batch_op.create_index(batch_op.f("ix_study_patient_key"), ["patient_key"], unique=False)

    op.create_table(
        "former_patient",
        sa.Column("study_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "patient_id",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["study_key"], ["study.key"], name=op.f("fk_former_patient_study_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_key", "patient_id", name=op.f("pk_former_patient")),
    )
    op.create_table(
        "series",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("study_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "series_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "modality",
            sa.String(length=16).with_variant(sa.String(length=16, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_key"], ["study.key"], name=op.f("fk_series_study_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_series")),
        sa.UniqueConstraint("study_key", "series_instance_uid", name=op.f("uq_series_study_key")),
    )
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_series_series_instance_uid"), ["series_instance_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_series_study_key"), ["study_key"], unique=False)

    op.create_table(
        "instance",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("series_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "sop_instance_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "sop_class_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "transfer_syntax_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("instance_number", sa.Integer(), nullable=True),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("original_digest", sa.String(length=64), nullable=False),
        sa.Column("original_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pixel_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pixel_warning", sa.Text(), nullable=False),
        sa.Column("calling_aet", sa.String(length=16), nullable=False),
        sa.Column("received_at", sa.DateTime(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("reason_code", sa.String(length=16), nullable=False),
        sa.Column("rendition_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["series_key"], ["series.key"], name=op.f("fk_instance_series_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_instance")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_instance_sop_instance_uid")),
    )
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_instance_original_digest"), ["original_digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_instance_series_key"), ["series_key"], unique=False)
        batch_op.create_index("ix_instance_state", ["state", "key"], unique=False)

    op.create_table(
        "original",
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("form", sa.String(length=16), nullable=False),
        sa.Column("tier", sa.String(length=8), nullable=False),
        sa.Column("object_digest", sa.String(length=64), nullable=True),
        sa.Column("object_bytes", sa.BigInteger(), nullable=False),
        sa.Column("to_pack", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("held_since", sa.DateTime(), nullable=False),
        sa.Column("restored_at", sa.DateTime(), nullable=True),
        sa.Column("purged_at", sa.DateTime(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_key"], ["instance.key"], name=op.f("fk_original_instance_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_key", name=op.f("pk_original")),
    )
    with op.batch_alter_table("original", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_original_object_digest"), ["object_digest"], unique=False)
        batch_op.create_index("ix_original_tier_form", ["tier", "form"], unique=False)
        batch_op.create_index("ix_original_to_pack", ["to_pack", "instance_key"], unique=False)

    op.create_table(
        "pin",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("commitment_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["commitment_key"], ["commitment.key"], name=op.f("fk_pin_commitment_key")),
        sa.ForeignKeyConstraint(["instance_key"], ["instance.key"], name=op.f("fk_pin_instance_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_pin")),
    )
    with op.batch_alter_table("pin", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pin_instance_key"), ["instance_key"], unique=False)

    op.create_table(
        "reference",
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "uid", sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["instance_key"], ["instance.key"], name=op.f("fk_reference_instance_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_key", "uid", name=op.f("pk_reference")),
    )
    op.create_table(
        "reference_copy",
        sa.Column(
            "uid", sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("pairs", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_key"], ["instance.key"], name=op.f("fk_reference_copy_instance_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_reference_copy")),
    )
    with op.batch_alter_table("reference_copy", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reference_copy_instance_key"), ["instance_key"], unique=False)

    op.create_table(
        "rendition",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column(
            "derived_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "structure_uid",
            sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("base_digest", sa.String(length=64), nullable=False),
        sa.Column("base_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rendition_digest", sa.String(length=64), nullable=False),
        sa.Column("rendition_bytes", sa.BigInteger(), nullable=False),
        sa.Column("point", sa.String(length=64), nullable=False),
        sa.Column("operating_point", sa.JSON(), nullable=False),
        sa.Column("upscaler", sa.String(length=32), nullable=False),
        sa.Column("weights_digest", sa.String(length=64), nullable=False),
        sa.Column("output_digest", sa.String(length=64), nullable=False),
        sa.Column("structure_digest", sa.String(length=64), nullable=False),
        sa.Column("psnr_db", sa.Float(), nullable=False),
        sa.Column("fsim_mean", sa.Float(), nullable=False),
        sa.Column("fsim_p5", sa.Float(), nullable=False),
        sa.Column("tiles", sa.Integer(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("gated", sa.Integer(), nullable=False),
        sa.Column("tried", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("verified_at", sa.DateTime(), nullable=False),
        sa.Column("withdrawn", sa.Text(), nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["instance_key"], ["instance.key"], name=op.f("fk_rendition_instance_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rendition")),
        sa.UniqueConstraint("derived_uid", name=op.f("uq_rendition_derived_uid")),
        sa.UniqueConstraint("structure_uid", name=op.f("uq_rendition_structure_uid")),
    )
    with op.batch_alter_table("rendition", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rendition_base_digest"), ["base_digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_rendition_instance_key"), ["instance_key"], unique=False)
        batch_op.create_index(batch_op.f("ix_rendition_rendition_digest"), ["rendition_digest"], unique=False)

    op.create_table(
        "reverification",
        sa.Column("key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("base_digest", sa.String(length=64), nullable=False),
        sa.Column("terms", sa.String(length=64), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("tried_at", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["instance_key"], ["instance.key"], name=op.f("fk_reverification_instance_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_reverification")),
        sa.UniqueConstraint("instance_key", "base_digest", "terms", name=op.f("uq_reverification_instance_key")),
    )
