"""How originals are held, holds, labels, and the audit trail"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEY = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def _text(width: int) -> sa.String:
    return sa.String(width).with_variant(sa.String(width, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "original",
        sa.Column(
            "instance_key",
            KEY,
            sa.ForeignKey("instance.key", name="fk_original_instance_key", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.Column("object_digest", sa.String(64), nullable=True),
        sa.Column("object_bytes", sa.BigInteger(), nullable=False),
        sa.Column("to_pack", sa.Integer(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("held_since", sa.DateTime(), nullable=False),
        sa.Column("restored_at", sa.DateTime(), nullable=True),
        sa.Column("purged_at", sa.DateTime(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(100), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("instance_key", name="pk_original"),
    )
    op.create_index("ix_original_object_digest", "original", ["object_digest"])
    op.create_index("ix_original_to_pack", "original", ["to_pack", "instance_key"])
    op.create_index("ix_original_tier_form", "original", ["tier", "form"])
    # every original that an older release took in lies verbatim in the hot store
    op.execute(
        "INSERT INTO original (instance_key, form, tier, object_digest, object_bytes, to_pack, note, held_since,"
        " attempts) SELECT key, 'verbatim', 'hot', original_digest, original_bytes, 1, '', received_at, 0 FROM instance"
    )
    op.create_table(
        "doomed",
        sa.Column("key", KEY, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_doomed"),
        sa.UniqueConstraint("digest", "tier", name="uq_doomed_digest"),
    )
    op.create_table(
        "hold",
        sa.Column("key", KEY, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("value", _text(128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("placed_by", sa.String(128), nullable=False),
        sa.Column("placed_at", sa.DateTime(), nullable=False),
        sa.Column("released_by", sa.String(128), nullable=False),
        sa.Column("released_at", sa.DateTime(), nullable=True),
        sa.Column("release_reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_hold"),
    )
    op.create_index("ix_hold_kind_value", "hold", ["kind", "value"])
    op.create_table(
        "label",
        sa.Column("key", KEY, nullable=False),
        sa.Column("study_instance_uid", _text(64), nullable=False),
        sa.Column("name", _text(128), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_label"),
        sa.UniqueConstraint("study_instance_uid", "name", name="uq_label_study_instance_uid"),
    )
    op.create_table(
        "trail",
        sa.Column("number", KEY, nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("who", sa.String(128), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("uids", sa.JSON(), nullable=False),
        sa.Column("rendition", sa.String(16), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_trail"),
    )
    op.create_index("ix_trail_at", "trail", ["at"])


def downgrade() -> None:
    for table in ("trail", "label", "hold", "doomed", "original"):
        op.drop_table(table)
