"""Work with leases, and its results: jobs, re-verification, storage commitment, damage, garbage, replicas."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)

from storage.index.tables.columns import Key, code_point_text, lease_columns, table

reverification = table(
    "reverification",
    Column("key", Key, primary_key=True),
    Column("instance_key", ForeignKey("instance.key"), nullable=False),
    Column("base_digest", String(64), nullable=False),
    # digest of the model, its recipe and the gate's thresholds
    Column("terms", String(64), nullable=False),
    Column("model", Text, nullable=False),
    # a ReverificationOutcome; empty during the attempt
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("tried_at", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    *lease_columns(),
    UniqueConstraint("instance_key", "base_digest", "terms"),
)

job = table(
    "job",
    Column("name", String(32), primary_key=True),
    Column("paused", Integer, nullable=False),
    Column("requested_at", Float, nullable=True),
    # the newest scheduled time that was run or skipped
    Column("due_at", Float, nullable=False),
    *lease_columns(),
    Column("run_key", Key, nullable=True),
    # state that the job keeps for its next run, such as the position of a scrub
    Column("memory", JSON, nullable=False),
)

job_run = table(
    "job_run",
    Column("key", Key, primary_key=True),
    Column("job", String(32), nullable=False),
    Column("owner", String(100), nullable=False),
    Column("cause", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("cancel", Integer, nullable=False),
    Column("report", JSON, nullable=False),
    Column("error", Text, nullable=False),
    Index("ix_job_run_job", "job", "key"),
)

damage = table(
    "damage",
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("store", String(16), nullable=False),
    Column("instance_key", Key, nullable=True),
    Column("condition", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("moved_to", Text, nullable=False),
    Column("found_at", Float, nullable=False),
    Column("action", String(16), nullable=False),
    # the state of the instance before, restored once the object is whole, and the reason that the scrub set
    Column("former_state", String(16), nullable=False),
    Column("former_reason", Text, nullable=False),
    Column("former_code", String(32), nullable=False),
    Column("set_reason", Text, nullable=False),
    Column("closed_at", Float, nullable=True),
    Column("outcome", Text, nullable=False),
)

report = table(
    "report",
    Column("key", Key, primary_key=True),
    Column("kind", String(32), nullable=False),
    # of its files in the reports folder, without their extensions
    Column("name", String(64), nullable=False, unique=True),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("alarm", Integer, nullable=False),
    Column("summary", JSON, nullable=False),
    Index("ix_report_kind", "kind", "key"),
)
"""Reports of audits and validations."""

commitment = table(
    "commitment",
    Column("key", Key, primary_key=True),
    Column("transaction_uid", code_point_text(64), nullable=False, index=True),
    Column("calling_aet", String(16), nullable=False),
    Column("items", JSON, nullable=False),
    Column("duplicate", Integer, nullable=False),
    Column("report", JSON, nullable=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False),
    *lease_columns(),
    Column("requested_at", DateTime, nullable=False),
    Column("closed_at", DateTime, nullable=True),
    Index("ix_commitment_state_due", "state", "due"),
)

pin = table(
    "pin",
    Column("key", Key, primary_key=True),
    Column("instance_key", ForeignKey("instance.key"), nullable=False, index=True),
    Column("commitment_key", ForeignKey("commitment.key"), nullable=False),
    Column("until", Float, nullable=True),
)
"""Originals that a commitment protects from a purge, until a time in seconds since the epoch; NULL: for ever."""

replica = table(
    "replica",
    Column("instance_key", ForeignKey("instance.key"), primary_key=True),
    Column("peer", String(16), primary_key=True),
    Column("original_digest", String(64), nullable=False),
    # version of the amended header that was sent; empty without amendments
    Column("version", String(16), nullable=False),
    Column("acknowledged_at", DateTime, nullable=False),
)
"""Originals that a peer holds: it answered their C-STORE with 0x0000."""

garbage = table(
    "garbage",
    Column("key", Key, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("tier", String(8), nullable=False),
    UniqueConstraint("digest", "tier"),
)
"""Objects to unlink since no row needs them: rows change first, files are unlinked after the commit."""
