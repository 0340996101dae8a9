"""Opening the database: pragmas for SQLite, transactions that mean it, and migrations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from storage.errors import StoreFull

_CANNOT_WRITE = ("disk is full", "disk full", "readonly database", "read-only", "disk I/O error", "unable to open")
"""How SQLite and PostgreSQL say it."""
MIGRATIONS = Path(__file__).parent.parent / "migrations"


def connect(url: str) -> Engine:
    """An engine for ``url``. On SQLite: WAL, synchronous FULL (a commit is on disk), foreign keys checked."""
    engine = create_engine(url, hide_parameters=True)  # they are patient data, and errors with them reach the log
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision (alembic)."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A write transaction. A full or read-only disk or database becomes StoreFull."""
    try:
        with engine.connect().execution_options(write=True) as connection, connection.begin():
            yield connection
    except DBAPIError as error:
        if any(said in str(error.orig) for said in _CANNOT_WRITE):
            raise StoreFull(f"the index cannot be written: {error.orig}") from error
        raise


def now() -> datetime:
    """The time as rows hold it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the "begin" listener opens transactions, not sqlite3
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=60000",
        "cache_size=-16384",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once: two writers queue instead of failing when the second upgrades
    writes = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
