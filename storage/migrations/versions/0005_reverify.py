"""Re-verification with another model, and the files of models"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "reverification",
        sa.Column("key", KEY, nullable=False),
        sa.Column("instance_key", KEY, nullable=False),
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
    op.create_table(
        "model_file",
        sa.Column("key", KEY, nullable=False),
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
    with op.batch_alter_table("rendition", schema=None) as batch_op:
        batch_op.add_column(sa.Column("recipe", sa.String(length=64), nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    with op.batch_alter_table("rendition", schema=None) as batch_op:
        batch_op.drop_column("recipe")
    op.drop_table("model_file")
    op.drop_table("reverification")
