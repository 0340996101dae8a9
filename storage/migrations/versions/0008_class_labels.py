"""What labelled images show, for validations"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def _text(width: int) -> sa.String:
    return sa.String(length=width).with_variant(sa.String(length=width, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "class_label",
        sa.Column("key", KEY, nullable=False),
        sa.Column("sop_instance_uid", _text(64), nullable=False),
        sa.Column("class_name", _text(64), nullable=False),
        sa.Column("held", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_class_label")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_class_label_sop_instance_uid")),
    )


def downgrade() -> None:
    op.drop_table("class_label")
