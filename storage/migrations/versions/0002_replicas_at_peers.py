"""Which originals a peer has"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "replica",
        sa.Column("instance_key", sa.Integer().with_variant(sa.BigInteger(), "postgresql"), nullable=False),
        sa.Column("peer", sa.String(length=16), nullable=False),
        sa.Column("original_digest", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=16), nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["instance_key"], ["instance.key"], name=op.f("fk_replica_instance_key")),
        sa.PrimaryKeyConstraint("instance_key", "peer", name=op.f("pk_replica")),
    )
