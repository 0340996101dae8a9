"""Lets the hundreds of nodes in tests start and stop faster, without changing what they do.

``fork_workers_from_a_warm_process``: a node starts each worker as a new interpreter, which takes four seconds of
processor time until it has encoded its first image, nearly all of it imports. Here workers are forked from one process
per test session (multiprocessing's "forkserver"), which has imported the libraries and computed nothing. The tests of
``latent-pacs serve`` run in processes of their own and start workers as a node does.

``stop_servers_at_once``: a server of the standard library looks every half second whether it is to stop.

``copy_new_indexes``: the schema of an empty index takes 50 ms to create, and a copy of one does not.
"""

from __future__ import annotations

import multiprocessing
import shutil
import socketserver
from multiprocessing import forkserver
from pathlib import Path

from sqlalchemy import Engine

from node.workers import pool
from storage.index import connect, holdings, migrate


def fork_workers_from_a_warm_process() -> None:
    """From now on, worker pools of this process start their workers that way."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.support.preloaded"])
    forkserver.ensure_running()
    pool.START_METHOD = "forkserver"


def stop_servers_at_once() -> None:
    """From now on, servers of this process look fifty times a second whether they are to stop."""
    socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)


def copy_new_indexes(folder: Path) -> None:
    """From now on, a new SQLite index of this process starts as a copy of an empty one in ``folder``."""
    empty = folder / "empty.sqlite"
    engine = connect(f"sqlite:///{empty}")
    migrate(engine)
    engine.dispose()

    def migrate_copy(engine: Engine) -> None:
        file = engine.url.database
        if engine.dialect.name == "sqlite" and file and not Path(file).exists():
            shutil.copyfile(empty, file)
        migrate(engine)

    holdings.migrate = migrate_copy
