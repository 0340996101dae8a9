"""Foreign peers for tests: DCMTK's command-line tools and Orthanc.

Neither DCMTK's storescp nor Orthanc can be bound to one address; they listen on free ports while a test runs.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from benchmarks.ingest import free_port
from node.dimse.client import Address
from tests.conftest import need, unavailable, wait_for

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"


# --- ports ---


@contextmanager
def dead_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections: it is bound, but does not listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# --- DCMTK ---


@dataclass(frozen=True)
class Ran:
    """A finished run of a tool: its exit code and its output (with -d, every DIMSE message)."""

    code: int
    output: str

    @property
    def status(self) -> int:
        """The last DIMSE status that the tool received."""
        return int(_last(r"DIMSE Status +: 0x([0-9a-f]{4})", self.output), 16)

    @property
    def statuses(self) -> list[int]:
        return [int(status, 16) for status in re.findall(r"DIMSE Status +: 0x([0-9a-f]{4})", self.output)]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Completed, failed and warning sub-operations of the last response."""
        completed, failed, warning = (
            int(_last(rf"{kind} Suboperations +: (\d+)", self.output)) for kind in ("Completed", "Failed", "Warning")
        )
        return completed, failed, warning

    @property
    def failed_uids(self) -> set[str]:
        """The Failed SOP Instance UID List (0008,0058) of the last response that has one."""
        return set(_last(r"\(0008,0058\) UI \[([0-9.\\]+)\]", self.output).split("\\"))

    @property
    def said(self) -> str:
        """The output without the presentation contexts and bytes of -d, for assertion messages."""
        return "\n".join(line for line in self.output.splitlines() if not line.startswith("D:  "))

    @property
    def comment(self) -> str:
        return _last(r"\(0000,0902\) LO \[(.*?)\]", self.output).strip()


def run(tool: str, *arguments: object, timeout: float = 300) -> Ran:
    """Run a command-line tool to its end."""
    need(tool)
    done = subprocess.run(
        [tool, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode("utf-8", "replace"))


@contextmanager
def running(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A tool that runs inside the block, and is killed at its end."""
    need(str(command[0]))
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=300)


def echoscu(to: Address, *, calling: str) -> int:
    """The status of a C-ECHO."""
    ran = run("echoscu", "-v", "-aet", calling, "-aec", to.ae_title, to.host, to.port)
    answer = _last(r"Received Echo Response \((?:Unknown Status: )?(.+)\)", ran.output)
    return 0 if answer == "Success" else int(answer, 16)


def storescu(files: Sequence[Path], to: Address, *options: object, calling: str = "MODALITY") -> Ran:
    return run("storescu", "-d", "-aet", calling, "-aec", to.ae_title, *options, to.host, to.port, *files)


def findscu(
    to: Address, folder: Path, root: str, level: str, *keys: str, calling: str, check: bool = True
) -> tuple[Ran, list[Dataset]]:
    """C-FIND with ``root`` -P, -S or -O. Returns the matches that findscu wrote to ``folder``."""
    folder.mkdir(exist_ok=True)
    ran = run(
        *("findscu", "-d", root, "-aet", calling, "-aec", to.ae_title, "-X", "-od", folder),
        *_keys(level, keys),
        *(to.host, to.port),
    )
    answers = []
    for path in sorted(folder.glob("rsp*.dcm")):
        answers.append(dcmread(path))
        path.unlink()
    if check:
        assert (ran.code, ran.status) == (0, 0), ran.said
    return ran, answers


def movescu(
    to: Address,
    root: str,
    level: str,
    *keys: str,
    calling: str,
    destination: str = "",
    options: str = "",
    timeout: float = 300,
) -> Ran:
    """C-MOVE to one of our peers. ``destination``: needed if it is not the caller."""
    return run(
        *("movescu", "-d", "-dhl", root, *options.split(), "-aet", calling, "-aem", destination or calling),
        *("-aec", to.ae_title, *_keys(level, keys), to.host, to.port),
        timeout=timeout,
    )


def getscu(to: Address, folder: Path, root: str, level: str, *keys: str, calling: str, options: str = "+B") -> Ran:
    """C-GET into ``folder``. With +B, data sets are written as they were received."""
    folder.mkdir(exist_ok=True)
    return run(*getscu_command(to, folder, root, level, *keys, calling=calling, options=options))


def getscu_command(
    to: Address, folder: Path, root: str, level: str, *keys: str, calling: str, options: str = "+B"
) -> list[Any]:
    return [
        *("getscu", "-d", root, *options.split(), "-aet", calling, "-aec", to.ae_title, "-od", folder),
        *_keys(level, keys),
        *(to.host, to.port),
    ]


def _keys(level: str, keys: Sequence[str]) -> list[str]:
    return list(itertools.chain(*(("-k", key) for key in (f"QueryRetrieveLevel={level}", *keys))))


@dataclass
class StoreScp:
    """A running storescp of DCMTK, and the folder to which it writes."""

    folder: Path
    process: subprocess.Popen[bytes]
    log: Path

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def only(self) -> Path:
        """The one file that was received."""
        files = self.files()
        assert len(files) == 1, f"received {[file.name for file in files]}"
        return files[0]


@contextmanager
def storescp(folder: Path, port: int, *options: object) -> Iterator[StoreScp]:
    """Run DCMTK's storescp on a port, in its bit-preserving mode unless ``options`` say otherwise."""
    need("storescp")
    folder.mkdir(exist_ok=True)
    log = folder.with_suffix(".log")
    mode = () if "-B" in options else ("+B",)
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["storescp", "-d", "-dhl", "-od", str(folder), *mode, *map(str, options), str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: process.poll() is not None or listens(port), what="storescp listens")
        assert process.poll() is None, log.read_text(errors="replace")
        yield StoreScp(folder, process, log)
    finally:
        process.kill()
        process.wait(timeout=300)


def listens(port: int) -> bool:
    """Whether the port accepts a TCP connection."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def data_set_bytes(path: Path) -> bytes:
    """The bytes of a Part 10 file after its file meta information (PS3.10 section 7.1)."""
    raw = path.read_bytes()
    assert raw[128:140] == b"DICM\x02\x00\x00\x00UL\x04\x00", path
    return raw[144 + struct.unpack("<I", raw[140:144])[0] :]


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    assert found, f"nothing like {pattern} in:\n{text}"
    return str(found[-1])


# --- Orthanc ---


class Orthanc:
    """An Orthanc for tests: temporary storage, REST for this machine only, no plugins."""

    ae_title = "ORTHANC"

    def __init__(self, folder: Path, *, dicom_port: int = 0, **configuration: Any) -> None:
        self.http_port, self.dicom_port = free_port(), dicom_port or free_port()
        self._folder = folder
        self._configuration = {
            "Name": "latent-pacs tests",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": self.ae_title,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "StableAge": 1,
            "DicomScuTimeout": 60,
            **configuration,
        }
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Orthanc:
        program = shutil.which("Orthanc", path=_PATH)
        if program is None:
            unavailable("Orthanc not installed (Debian: orthanc)")
        config, self.log = self._folder / "orthanc.json", self._folder / "orthanc.log"
        config.write_text(json.dumps(self._configuration))
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(program), str(config)], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            wait_for(lambda: self._process.poll() is not None or self._answers(), what="Orthanc started")
            assert self._process.poll() is None, self.log.read_text(errors="replace")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def know(self, name: str, address: Address, *, calling: str) -> None:
        """Add or replace a modality that Orthanc talks to, under the AE title ``calling``."""
        self.call(
            "PUT",
            f"/modalities/{name}",
            {"AET": address.ae_title, "Host": address.host, "Port": address.port, "LocalAet": calling},
        )

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self.call("POST", path, body)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One REST request; JSON comes back as data, anything else as bytes. Raises OrthancError."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=data, method=method)
        try:
            with self._opener.open(request, timeout=300) as answer:
                content: bytes = answer.read()
                is_json = answer.headers.get_content_type() == "application/json"
        except urllib.error.HTTPError as error:
            with error:
                raise OrthancError(error.code, error.read().decode("utf-8", "replace")) from None
        return json.loads(content) if is_json else content

    def instances(self) -> dict[str, str]:
        """Orthanc's own identifiers of all its instances, by SOP Instance UID."""
        found = self.get("/instances?expand")
        return {one["MainDicomTags"]["SOPInstanceUID"]: one["ID"] for one in found}

    def file(self, uid: str) -> bytes:
        """The DICOM file of an instance, as Orthanc stored it."""
        content: bytes = self.get(f"/instances/{self.instances()[uid]}/file")
        return content

    def clear(self) -> None:
        for patient in self.get("/patients"):
            self.call("DELETE", f"/patients/{patient}")

    def _answers(self) -> bool:
        with suppress(OSError, OrthancError):
            self.get("/system")
            return listens(self.dicom_port)
        return False

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=300)


class OrthancError(Exception):
    """Orthanc answered a REST request with an error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"HTTP {code}: {text}")
        self.code, self.text = code, text
