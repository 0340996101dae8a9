"""Jobs, their runs, and what a scrub found"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("paused", sa.Integer(), nullable=False),
        sa.Column("requested_at", sa.Float(), nullable=True),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("run_key", KEY, nullable=True),
        sa.Column("memory", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_job")),
    )
    op.create_table(
        "job_run",
        sa.Column("key", KEY, nullable=False),
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
        "damage",
        sa.Column("key", KEY, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("store", sa.String(length=16), nullable=False),
        sa.Column("instance_key", KEY, nullable=True),
        sa.Column("condition", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("moved_to", sa.Text(), nullable=False),
        sa.Column("found_at", sa.Float(), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("former_state", sa.String(length=16), nullable=False),
        sa.Column("former_reason", sa.Text(), nullable=False),
        sa.Column("set_reason", sa.Text(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_damage")),
    )
    with op.batch_alter_table("damage", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_damage_digest"), ["digest"], unique=False)
    with op.batch_alter_table("rendition", schema=None) as batch_op:
        batch_op.add_column(sa.Column("withdrawn", sa.Text(), nullable=False, server_default=sa.text("''")))
        batch_op.create_index(batch_op.f("ix_rendition_base_digest"), ["base_digest"], unique=False)
        batch_op.create_index(batch_op.f("ix_rendition_rendition_digest"), ["rendition_digest"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("rendition", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rendition_rendition_digest"))
        batch_op.drop_index(batch_op.f("ix_rendition_base_digest"))
        batch_op.drop_column("withdrawn")
    op.drop_table("damage")
    op.drop_table("job_run")
    op.drop_table("job")
