"""Amendments of headers, tombstones of what was deleted, references of annotations"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def text(width: int) -> sa.types.TypeEngine[str]:
    return sa.String(length=width).with_variant(sa.String(length=width, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "amendment",
        sa.Column("key", KEY, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("target", text(160), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("made_by", sa.String(length=128), nullable=False),
        sa.Column("made_at", sa.DateTime(), nullable=False),
        sa.Column("undoes", KEY, nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_amendment")),
    )
    with op.batch_alter_table("amendment", schema=None) as batch_op:
        batch_op.create_index("ix_amendment_target", ["target"], unique=False)
        batch_op.create_index(batch_op.f("ix_amendment_undoes"), ["undoes"], unique=False)
    op.create_table(
        "former_patient",
        sa.Column("study_key", KEY, nullable=False),
        sa.Column("patient_id", text(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_key"], ["study.key"], name=op.f("fk_former_patient_study_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_key", "patient_id", name=op.f("pk_former_patient")),
    )
    op.create_table(
        "tombstone",
        sa.Column("key", KEY, nullable=False),
        sa.Column("uid", text(64), nullable=False),
        sa.Column("original_uid", text(64), nullable=False),
        sa.Column("study_instance_uid", text(64), nullable=False),
        sa.Column("series_instance_uid", text(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("deleted_by", sa.String(length=128), nullable=False),
        sa.Column("deleted_at", sa.DateTime(), nullable=False),
        sa.Column("instance_key", KEY, nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("lifted_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_tombstone")),
        sa.UniqueConstraint("uid", name=op.f("uq_tombstone_uid")),
    )
    with op.batch_alter_table("tombstone", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_tombstone_original_uid"), ["original_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_tombstone_study_instance_uid"), ["study_instance_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_tombstone_instance_key"), ["instance_key"], unique=False)
    op.create_table(
        "reference",
        sa.Column("instance_key", KEY, nullable=False),
        sa.Column("uid", text(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_key"], ["instance.key"], name=op.f("fk_reference_instance_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("instance_key", "uid", name=op.f("pk_reference")),
    )
    op.create_table(
        "reference_copy",
        sa.Column("uid", text(64), nullable=False),
        sa.Column("instance_key", KEY, nullable=False),
        sa.Column("pairs", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_key"], ["instance.key"], name=op.f("fk_reference_copy_instance_key"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_reference_copy")),
    )
    with op.batch_alter_table("reference_copy", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reference_copy_instance_key"), ["instance_key"], unique=False)
    op.add_column("study", sa.Column("received", sa.JSON(), nullable=True))
    op.add_column("study", sa.Column("amended", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.drop_column("amended")
        batch_op.drop_column("received")
    op.drop_table("reference_copy")
    op.drop_table("reference")
    op.drop_table("tombstone")
    op.drop_table("former_patient")
    op.drop_table("amendment")
