"""Decisions of people: holds, labels, amendments, deletions, and the audit trail."""

from __future__ import annotations

from sqlalchemy import JSON, Column, DateTime, Index, Integer, String, Text, UniqueConstraint

from storage.index.tables.columns import Key, code_point_text, table

hold = table(
    "hold",
    Column("key", Key, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("value", code_point_text(128), nullable=False),
    Column("reason", Text, nullable=False),
    Column("placed_by", String(128), nullable=False),
    Column("placed_at", DateTime, nullable=False),
    Column("released_by", String(128), nullable=False),
    Column("released_at", DateTime, nullable=True),
    Column("release_reason", Text, nullable=False),
    Index("ix_hold_kind_value", "kind", "value"),
)

label = table(
    "label",
    Column("key", Key, primary_key=True),
    Column("study_instance_uid", code_point_text(64), nullable=False),
    Column("name", code_point_text(128), nullable=False),
    UniqueConstraint("study_instance_uid", "name"),
)

class_label = table(
    "class_label",
    Column("key", Key, primary_key=True),
    Column("sop_instance_uid", code_point_text(64), nullable=False, unique=True),
    Column("class_name", code_point_text(64), nullable=False),
    # whether its original is kept for a validation
    Column("held", Integer, nullable=False),
)
"""The class of an image, for a validation."""

amendment = table(
    "amendment",
    Column("key", Key, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("target", code_point_text(160), nullable=False, index=True),
    Column("changes", JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("made_by", String(128), nullable=False),
    Column("made_at", DateTime, nullable=False),
    Column("undoes", Key, nullable=True, index=True),
)
"""Amendments of headers; rows are only ever added. Undoing one adds a row whose ``undoes`` names it."""

tombstone = table(
    "tombstone",
    Column("key", Key, primary_key=True),
    Column("uid", code_point_text(64), nullable=False, unique=True),
    Column("original_uid", code_point_text(64), nullable=False, index=True),
    Column("study_instance_uid", code_point_text(64), nullable=False, index=True),
    Column("series_instance_uid", code_point_text(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("deleted_by", String(128), nullable=False),
    Column("deleted_at", DateTime, nullable=False),
    # the key of the deleted row, which no other instance gets
    Column("instance_key", Key, nullable=False, index=True),
    # whether the rows of the instance are deleted
    Column("rows_deleted", Integer, nullable=False),
    Column("return_allowed_at", DateTime, nullable=True),
)
"""SOP Instance UIDs, original and derived, of deleted instances: they are refused until their return is allowed."""
tombstone_in_force = tombstone.c.return_allowed_at.is_(None)
"""Condition of a tombstone: its UIDs may not return."""

trail = table(
    "trail",
    Column("number", Key, primary_key=True),
    Column("at", String(32), nullable=False, index=True),
    Column("action", String(64), nullable=False),
    Column("who", String(128), nullable=False),
    Column("level", String(16), nullable=False),
    Column("uids", JSON, nullable=False),
    Column("rendition", String(16), nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)
"""The audit trail: rows are only ever added."""
