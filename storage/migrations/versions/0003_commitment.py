"""Storage commitment: what was asked, what was answered, and the originals it pins"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")
UID = sa.String(length=64).with_variant(sa.String(length=64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "commitment",
        sa.Column("key", KEY, nullable=False),
        sa.Column("transaction_uid", UID, nullable=False),
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
        batch_op.create_index(batch_op.f("ix_commitment_transaction_uid"), ["transaction_uid"], unique=False)
        batch_op.create_index("ix_commitment_state_due", ["state", "due"], unique=False)

    op.create_table(
        "pin",
        sa.Column("key", KEY, nullable=False),
        sa.Column("instance_key", KEY, nullable=False),
        sa.Column("commitment_key", KEY, nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["instance_key"], ["instance.key"], name=op.f("fk_pin_instance_key")),
        sa.ForeignKeyConstraint(["commitment_key"], ["commitment.key"], name=op.f("fk_pin_commitment_key")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_pin")),
    )
    with op.batch_alter_table("pin", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_pin_instance_key"), ["instance_key"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("pin", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_pin_instance_key"))

    op.drop_table("pin")
    with op.batch_alter_table("commitment", schema=None) as batch_op:
        batch_op.drop_index("ix_commitment_state_due")
        batch_op.drop_index(batch_op.f("ix_commitment_transaction_uid"))

    op.drop_table("commitment")
