"""Lets the hundreds of nodes in tests start and stop faster, without changing what they do.

``fork_workers_from_a_warm_process``: a node starts each worker as a new interpreter, which takes four seconds of
processor time until it has encoded its first image, nearly all of it imports. Here workers are forked from one process
per test session (multiprocessing's "forkserver"), which has imported the libraries and computed nothing. The tests of
``latent-pacs serve`` run in processes of their own and start workers as a node does.

``stop_servers_at_once``: a server of the standard library checks every half second whether it should stop. Here it only
waits for connections, and a connection from this process ends the wait.

``copy_new_indexes``: the schema of an empty index takes 50 ms to create, and a copy of one does not.

``build_commands_once``: the tree of all commands takes 80 ms to build, which the console script does once.

``measure_fsim_of_two_tiles``: the gate does not use FSIM, and measuring it takes half the time to encode a small image.
Tests of FSIM itself measure all tiles (``tests/unit/node/fidelity/test_fidelity.py``).
"""

from __future__ import annotations

import multiprocessing
import shutil
import socket
import socketserver
from contextlib import suppress
from functools import lru_cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import typer.main
import typer.testing
from sqlalchemy import Engine

from node.fidelity.gate import paper_figures
from node.workers import pool
from storage.index import connect, holdings, migrate


def fork_workers_from_a_warm_process() -> None:
    """From now on, fork the workers of this process's pools from a process that has loaded the libraries."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.support.preloaded"])
    forkserver.ensure_running()
    pool.START_METHOD = "forkserver"


def stop_servers_at_once() -> None:
    """From now on, servers of this process only wait for connections, and a connection from this process stops them."""

    def shutdown(server: Any) -> None:
        server._BaseServer__shutdown_request = True
        with suppress(OSError):  # it has stopped listening
            socket.create_connection(server.socket.getsockname()[:2], timeout=1).close()
        server._BaseServer__is_shut_down.wait()

    socketserver.BaseServer.serve_forever.__defaults__ = (5,)
    socketserver.BaseServer.shutdown = shutdown  # type: ignore[method-assign]


def build_commands_once() -> None:
    """From now on, all commands that run in this process use the same tree."""
    typer.main.get_command = typer.testing._get_command = lru_cache(typer.main.get_command)


def measure_fsim_of_two_tiles() -> None:
    """From now on, this process and the workers that it forks measure FSIM of two tiles of an image at most."""
    paper_figures.__defaults__ = (2,)


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
