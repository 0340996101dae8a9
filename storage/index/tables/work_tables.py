"""Work with leases, and its results: jobs, re-verification, storage commitment, damage, garbage, replicas."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
)

from storage.index.tables.columns import Key, column, lease_columns, table

reverification = table(
    "reverification",
    column("key", Key, primary_key=True),
    column("instance_key", ForeignKey("instance.key")),
    column("base_digest", String(64)),
    # digest of the model, its recipe and the gate's thresholds
    column("terms", String(64)),
    column("model", Text),
    # a ReverificationOutcome; empty during the attempt
    column("outcome", String(16)),
    column("reason", Text),
    column("tried_at", Float),
    column("attempts", Integer),
    *lease_columns(),
    UniqueConstraint("instance_key", "base_digest", "terms"),
)

job = table(
    "job",
    column("name", String(32), primary_key=True),
    column("paused", Integer),
    column("requested_at", Float, nullable=True),
    # the newest scheduled time that was run or skipped
    column("due_at", Float),
    *lease_columns(),
    column("run_key", Key, nullable=True),
    # state that the job keeps for its next run, such as the position of a scrub
    column("memory", JSON),
)

job_run = table(
    "job_run",
    column("key", Key, primary_key=True),
    column("job", String(32)),
    column("owner", String(100)),
    column("cause", String(16)),
    column("state", String(16)),
    column("started_at", Float),
    column("ended_at", Float, nullable=True),
    column("done", BigInteger),
    column("total", BigInteger),
    column("text", Text),
    column("cancel", Integer),
    column("report", JSON),
    column("error", Text),
    Index("ix_job_run_job", "job", "key"),
)

damage = table(
    "damage",
    column("key", Key, primary_key=True),
    column("digest", String(64), index=True),
    column("kind", String(16)),
    column("store", String(16)),
    column("instance_key", Key, nullable=True),
    column("condition", String(16)),
    column("detail", Text),
    column("moved_to", Text),
    column("found_at", Float),
    column("action", String(16)),
    # the state of the instance before, restored once the object is whole, and the reason that the scrub set
    column("former_state", String(16)),
    column("former_reason", Text),
    column("former_code", String(32)),
    column("set_reason", Text),
    column("closed_at", Float, nullable=True),
    column("outcome", Text),
)

report = table(
    "report",
    column("key", Key, primary_key=True),
    column("kind", String(32)),
    # name of its files in the reports folder, without their extensions
    column("name", String(64), unique=True),
    column("started_at", Float),
    column("finished_at", Float),
    column("verdict", Text),
    column("alarm", Integer),
    column("summary", JSON),
    Index("ix_report_kind", "kind", "key"),
)
"""Reports of audits and validations."""

commitment = table(
    "commitment",
    column("key", Key, primary_key=True),
    column("transaction_uid", String(64), index=True),
    column("calling_aet", String(16)),
    column("items", JSON),
    column("duplicate", Integer),
    column("report", JSON, nullable=True),
    column("state", String(16)),
    column("attempts", Integer),
    column("due", Float),
    *lease_columns(),
    column("requested_at", DateTime),
    column("closed_at", DateTime, nullable=True),
    Index("ix_commitment_state_due", "state", "due"),
)

pin = table(
    "pin",
    column("key", Key, primary_key=True),
    column("instance_key", ForeignKey("instance.key"), index=True),
    column("commitment_key", ForeignKey("commitment.key")),
    column("until", Float, nullable=True),
)
"""Originals that a commitment protects from a purge. ``until``: seconds since the epoch; NULL means for ever."""

replica = table(
    "replica",
    column("instance_key", ForeignKey("instance.key"), primary_key=True),
    column("peer", String(16), primary_key=True),
    column("original_digest", String(64)),
    # version of the amended header that was sent; empty without amendments
    column("version", String(16)),
    column("acknowledged_at", DateTime),
)
"""Originals that a peer holds: it answered their C-STORE with 0x0000."""

garbage = table(
    "garbage",
    column("key", Key, primary_key=True),
    column("digest", String(64)),
    column("tier", String(8)),
    UniqueConstraint("digest", "tier"),
)
"""Objects that a row no longer needs. The rows change first, and files are unlinked after the commit."""
