"""Decisions of people: holds, labels, amendments, deletions, and the audit trail."""

from __future__ import annotations

from sqlalchemy import JSON, DateTime, Index, Integer, String, Text, UniqueConstraint

from storage.index.tables.columns import Key, column, table

hold = table(
    "hold",
    column("key", Key, primary_key=True),
    column("kind", String(16)),
    column("value", String(128)),
    column("reason", Text),
    column("placed_by", String(128)),
    column("placed_at", DateTime),
    column("released_by", String(128)),
    column("released_at", DateTime, nullable=True),
    column("release_reason", Text),
    Index("ix_hold_kind_value", "kind", "value"),
)

label = table(
    "label",
    column("key", Key, primary_key=True),
    column("study_instance_uid", String(64)),
    column("name", String(128)),
    UniqueConstraint("study_instance_uid", "name"),
)

class_label = table(
    "class_label",
    column("key", Key, primary_key=True),
    column("sop_instance_uid", String(64), unique=True),
    column("class_name", String(64)),
    # whether its original is kept for a validation
    column("held", Integer),
)
"""The class of an image, for a validation."""

amendment = table(
    "amendment",
    column("key", Key, primary_key=True),
    column("kind", String(16)),
    column("target", String(160), index=True),
    column("changes", JSON),
    column("reason", Text),
    column("made_by", String(128)),
    column("made_at", DateTime),
    column("undoes", Key, nullable=True, index=True),
)
"""Amendments of headers; rows are only ever added. Undoing one adds a row whose ``undoes`` names it."""

tombstone = table(
    "tombstone",
    column("key", Key, primary_key=True),
    column("uid", String(64), unique=True),
    column("original_uid", String(64), index=True),
    column("study_instance_uid", String(64), index=True),
    column("series_instance_uid", String(64)),
    column("reason", Text),
    column("deleted_by", String(128)),
    column("deleted_at", DateTime),
    # the key of the deleted row, which no other instance gets
    column("instance_key", Key, index=True),
    # whether the rows of the instance are deleted
    column("rows_deleted", Integer),
    column("return_allowed_at", DateTime, nullable=True),
)
"""SOP Instance UIDs, original and derived, of deleted instances: they are refused until their return is allowed."""
tombstone_in_force = tombstone.c.return_allowed_at.is_(None)
"""Condition of a tombstone: its UIDs may not return."""

trail = table(
    "trail",
    column("number", Key, primary_key=True),
    column("at", String(32), index=True),
    column("action", String(64)),
    column("who", String(128)),
    column("level", String(16)),
    column("uids", JSON),
    column("rendition", String(16)),
    column("outcome", Text),
    column("detail", Text),
    column("previous", String(64)),
    column("digest", String(64)),
)
"""The audit trail: rows are only ever added."""
