"""A PostgreSQL server of the tests: a cluster in a temporary folder, which is reached by its socket only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.conftest import unavailable

_USER = "pacs"


class PostgreSql:
    """A cluster that compares text by locale, and the databases in it."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder = binaries, folder
        self._user = None if os.getuid() else "postgres"  # initdb and postgres refuse root
        if self._user:
            shutil.chown(folder, self._user)
        locale = ("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en", "--encoding=UTF8")
        self.run("initdb", "-D", folder / "data", "-U", _USER, "-A", "trust", *locale)

    def start(self) -> None:
        options = f"-k {self.folder} -c listen_addresses= -c max_connections=60"
        self.run("pg_ctl", "-D", self.folder / "data", "-l", self.folder / "log", "-w", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. ``mode``: ``fast`` ends the sessions, and ``immediate`` is a crash."""
        self.run("pg_ctl", "-D", self.folder / "data", "-w", "-m", mode, "stop")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str, user: str = _USER) -> str:
        return f"postgresql+psycopg://{user}@/{name}?host={self.folder}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """The output of psql for a statement."""
        return self.run("psql", "-h", self.folder, "-U", _USER, "-d", database, "-Atqc", statement).strip()

    def run(self, tool: str, *arguments: object) -> str:
        """The output of one of PostgreSQL's programs."""
        done = subprocess.run(
            [self.binaries / tool, *map(str, arguments)],
            user=self._user,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout


@contextmanager
def running_server() -> Iterator[PostgreSql]:
    """A running server; the test is skipped if PostgreSQL or psycopg is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    initdb = shutil.which("initdb", path=os.pathsep.join([*map(str, reversed(debian)), os.environ.get("PATH", "")]))
    if initdb is None or find_spec("psycopg") is None:
        unavailable("PostgreSQL or psycopg is not installed (Debian: postgresql; pip: latent-pacs[postgresql])")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:  # short, as the name of a socket must be
        server = PostgreSql(Path(initdb).parent, Path(folder))
        server.start()
        try:
            yield server
        finally:
            if (Path(folder) / "data" / "postmaster.pid").exists():
                server.stop("immediate")
