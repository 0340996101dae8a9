"""Opens the database: SQLite or PostgreSQL, with one write transaction at a time on both, and migrations."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from storage.errors import ConfigError, IndexFault, IndexRefused, NewerFormat, StoreFull
from storage.index.change_capture import install_triggers, triggers_are_right
from storage.index.tables import metadata

LOGGER = logging.getLogger(__name__)

FOLLOWER = "follower"
"""Name of an engine's execution option: a function that ``writing`` calls after each commit."""

_CANNOT_WRITE = ("disk is full", "readonly database", "disk I/O error", "unable to open")
"""Parts of SQLite's messages about a database that cannot be written."""
_PATIENCE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "tcp_user_timeout": 60_000}
"""Time limits of libpq, in seconds (``tcp_user_timeout``: milliseconds). With them, a request to a server that is gone
fails instead of hanging. Chosen, not measured."""
MIGRATIONS = Path(__file__).parent.parent / "migrations"


def connect(url: str) -> Engine:
    """An engine for ``url``. On SQLite: WAL, synchronous FULL, foreign keys checked. Connects to nothing yet.

    ``commits_need_no_sync`` lowers synchronous for an index whose journal is synced. Raises ConfigError.
    """
    options: dict[str, Any] = {"hide_parameters": True}  # parameters are patient data, and errors are logged
    try:
        made = make_url(url)
        if "@" in (made.host or ""):
            raise ConfigError("storage.database: write each @ of the user and the password as %40")
        if made.get_backend_name() == "postgresql":
            patience = {name: value for name, value in _PATIENCE.items() if name not in made.query}
            options |= {"pool_pre_ping": True, "connect_args": patience}
        engine = create_engine(made, **options)
    except ImportError as error:
        raise ConfigError(
            f"storage.database cannot be used: {error}; run `pip install 'latent-pacs[postgresql]'`"
        ) from error
    except (ArgumentError, ValueError) as error:  # ValueError: the port is no number
        raise ConfigError(
            "storage.database is not a database URL: write postgresql+psycopg://user@host/name"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        event.listen(engine, "handle_error", _translate_error)
    else:
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "handle_error", _translate_postgresql_error)
    return engine


def migrate(engine: Engine) -> None:
    """Create the newest schema, or upgrade an older one to it (alembic). An SQLite file is copied before an upgrade.

    Raises NewerFormat, StoreFull, and IndexRefused for a file that is not an index.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    newest, known = scripts.get_current_head(), {script.revision for script in scripts.walk_revisions()}
    current = _revision(engine)
    if current and current not in known:
        raise NewerFormat(
            f"the index {engine.url.database} has schema {current}, and this version knows none after {newest}: "
            "install a newer version"
        )
    if current != newest:
        if current:
            _copy_before(engine, current)
        with writing(engine) as connection:
            config.attributes["connection"] = connection
            if current:
                command.upgrade(config, "head")
            else:
                metadata.create_all(connection)
                command.stamp(config, "head")
    if engine.dialect.name == "sqlite":
        _mark_changes(engine, anew=current != newest)


def _revision(engine: Engine) -> str:
    """The revision of the schema; empty if there is no schema yet."""
    try:
        with engine.connect() as connection:
            tables = inspect(connection).get_table_names()
            if "alembic_version" in tables:
                return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")
    except (IndexFault, OperationalError) as error:
        said = error.orig if isinstance(error, OperationalError) else error
        raise IndexRefused(f"{engine.url.database}: {said}") from error
    if tables:
        raise IndexRefused(
            f"{engine.url.database} is a database, but not the index of an archive: check storage.database"
        )
    return ""


def _copy_before(engine: Engine, revision: str) -> None:
    """Copy an index beside itself before it is upgraded. Raises StoreFull."""
    if engine.dialect.name != "sqlite" or not engine.url.database:
        return
    copy = Path(f"{engine.url.database}.before-{revision}-{time.time_ns()}")
    partial = copy.with_name(f"{copy.name}.partial")
    try:
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("VACUUM INTO ?", (str(partial),))
    except sqlite3.Error as error:
        partial.unlink(missing_ok=True)
        raise StoreFull(
            f"the index {engine.url.database} has schema {revision} and was not upgraded, since no copy of it can be "
            f"written beside it ({error}); make room on its disk, and start again"
        ) from error
    partial.rename(copy)
    LOGGER.warning("the index has schema %s and is upgraded; %s is a copy of it before", revision, copy)


def _mark_changes(engine: Engine, *, anew: bool) -> None:
    with engine.connect() as connection:
        right = triggers_are_right(connection)
    if anew or not right:
        with writing(engine) as connection:
            install_triggers(connection)


def commits_need_no_sync(engine: Engine) -> None:
    """Set synchronous to NORMAL, for an index whose follower syncs committed changes to the journal.

    SQLite then preserves the order of commits, but does not sync each one.
    """

    def not_each(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(engine, "connect", not_each)
    engine.dispose()


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A write transaction. When the block has ended, its changes are in the change journal too.

    Raises StoreFull if the disk or the database is full or read-only. If the journal cannot be written, the error is
    raised after the commit; the changes stay, and the next writer journals them.
    """
    follower: Callable[[], None] | None = engine.get_execution_options().get(FOLLOWER)
    try:
        with engine.connect().execution_options(write=True) as connection, connection.begin():
            yield connection
    except (DBAPIError, IndexFault) as error:
        said = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        if any(words in said for words in _CANNOT_WRITE):
            raise StoreFull(f"the index cannot be written: {said}") from error
        raise
    if follower is not None:
        follower()


def now() -> datetime:
    """The time as rows store it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _translate_error(context: ExceptionContext) -> None:
    """Translate SQLite's errors about the machine, not about a row. Raises StoreFull, IndexFault.

    If SQLite cannot open a file for writing, it opens the file read-only, and that connection never writes again. The
    connections of a process share the file ``-shm``, which stays open read-only until the last of them is closed. So
    all of them are closed after a refused write, and opened anew.
    """
    error = context.original_exception
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(
        error, sqlite3.IntegrityError | sqlite3.ProgrammingError
    ):
        return
    if _primary_code(error) == sqlite3.SQLITE_READONLY:
        context.is_disconnect = True
        if context.engine is not None:
            context.engine.dispose()
    if _primary_code(error) == sqlite3.SQLITE_FULL:
        raise StoreFull(f"the index cannot be written: {error}") from error
    if advice := advice_on(error):
        raise IndexFault(f"the index cannot be used ({error}): {advice}") from error


def advice_on(error: sqlite3.Error) -> str:
    """What to do about an error of SQLite; empty if its cause is neither the machine nor the file."""
    return _ADVICE.get(_primary_code(error), "")


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension, such as SQLITE_READONLY for SQLITE_READONLY_DIRECTORY."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_REBUILD = "put a sound copy back, or stop the node and run `latent-pacs index rebuild`"
_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked; try again when that has ended",
    sqlite3.SQLITE_LOCKED: "another process keeps it locked; try again when that has ended",
    sqlite3.SQLITE_READONLY: "look at the rights of its file and folder, and whether the disk is mounted read-only",
    sqlite3.SQLITE_PERM: "look at the rights of its file and folder",
    sqlite3.SQLITE_CANTOPEN: "look whether its file and folder are there, and at their rights",
    sqlite3.SQLITE_IOERR: "its disk does not read or write; look at the system's log",
    sqlite3.SQLITE_CORRUPT: _REBUILD,
    sqlite3.SQLITE_NOTADB: _REBUILD,
}
"""Advice by SQLite's result code."""


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


_WRITE_LOCK = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '60s';
SET LOCAL idle_in_transaction_session_timeout = '5min';
SELECT pg_advisory_xact_lock(7226310)
"""
_DISK_FULL, _READ_ONLY, _NO_RIGHT = "53100", "25006", "42501"
"""SQLSTATE codes."""


def _begin_postgresql(connection: Connection) -> None:
    """As on SQLite: writers queue, each sees what those before it committed, and a reader sees one state throughout."""
    writes = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql(_WRITE_LOCK if writes else "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _translate_postgresql_error(context: ExceptionContext) -> None:
    """Translate PostgreSQL's errors about the server, not about a row. Raises StoreFull, IndexFault."""
    error = context.original_exception
    state, said = getattr(error, "sqlstate", None), " ".join(str(error).split())
    if state in (_DISK_FULL, _READ_ONLY):
        raise StoreFull(f"the index cannot be written: {said}") from error
    of_the_server = isinstance(context.sqlalchemy_exception, OperationalError) or state == _NO_RIGHT
    if of_the_server and not context.is_pre_ping:
        raise IndexFault(f"the index cannot be used ({said}): look at the database server, and its log") from error
