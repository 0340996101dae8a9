"""Proves that metrics are correct, that programs can parse the log, and that neither names a patient."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import yaml
from pydicom import Dataset

from benchmarks.ingest import free_port
from node.app import Node, make_audit, make_scrub
from node.cli.logs import JsonLines
from node.dimse import client
from node.dimse.client import Receiver
from node.jobs.runner import Runner
from node.jobs.scrub_job import Extent
from node.metrics import exposition
from storage.dicom.dicomfile import accept_odd_values
from storage.errors import ConfigError
from storage.index.job_runs import Cause, JobRows
from storage.index.report_rows import NewReport
from tests.conftest import Archive, settings_for
from tests.support.certificates import Authority
from tests.support.node_process import NodeProcess
from tests.support.paths import ROOT
from tests.support.samples import breast, mammogram, write

METRICS = ROOT / "docs/METRICS.md"
FIGURES = {"audited": 7, "fsim_mean": 0.95, "psnr_db": 41.0}
PATIENT = ("Müller", "M\\u00fcller", "M\\xfcller", "Anna", "P0001", "19600101", "ACC0001", "Roe")


def scraped(port: int) -> dict[str, float]:
    """Every sample by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=300) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


@pytest.mark.slow
def test_metrics_of_a_journey(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "COUNT_INTERVAL", 0.0)
    monkeypatch.setattr(exposition, "_REST", 0.0)
    port = free_port()
    tls = {"ca": str(Authority(tmp_path / "authority").file)}
    settings = settings_for(tmp_path / "archive", receiver.port, metrics={"port": port}, tls=tls)
    good, small = mammogram(), mammogram(breast(200, 200))
    with Node(settings) as node:
        archive = Archive(node, receiver)
        assert scraped(port)["latent_pacs_backlog"] == 0
        files = [write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate((good, small))]
        client.store(files, archive.address, calling="MODALITY", each=lambda *_: None)
        instance = archive.settled(good.SOPInstanceUID)
        archive.settled(small.SOPInstanceUID)
        identifier = client.image_identifier(good.StudyInstanceUID)
        client.move(identifier, archive.address, calling="VIEWER", destination="VIEWER")
        assert instance.rendition is not None
        node.store.path(instance.original_digest).write_bytes(b"")
        scrub = make_scrub(node.archive, extent=Extent.FULL)
        runner = Runner(JobRows(node.index.engine), 60)
        runner.run(scrub, Cause.COMMAND)
        audit = make_audit(node.archive)
        runner.rows.ensure([audit.name])
        runner.run(audit, Cause.COMMAND)
        node.archive.reports.rows.add(NewReport("audit", "earlier", 1.0, 2.0, "", True, {}))
        told = {**FIGURES, "failed": 0, "drifting": 0}
        node.archive.reports.rows.add(NewReport("audit", "later", 1.0, time.time() + 1, "", False, told))
        seen = scraped(port)
    assert seen['latent_pacs_ingest_seconds_count{outcome="stored"}'] == 2
    assert 0 < seen['latent_pacs_ingest_seconds_sum{outcome="stored"}'] < 60
    assert seen['latent_pacs_retrieve_seconds_count{outcome="reconstruction"}'] == 1
    assert seen['latent_pacs_work_seconds_count{request="prove"}'] == 1
    assert seen['latent_pacs_work_seconds_count{request="reconstruct"}'] == 1
    assert seen['latent_pacs_work_seconds_count{request="encode"}'] == 1
    assert seen['latent_pacs_instances{state="verified"}'] == seen['latent_pacs_instances{state="exact"}'] == 1
    assert seen['latent_pacs_bytes{kind="base"}'] == instance.rendition.base_bytes
    assert (seen["latent_pacs_scrub_checked"], seen["latent_pacs_scrub_damaged"]) == (4, 1)
    assert (seen["latent_pacs_damage_open"], seen["latent_pacs_gate_failures"]) == (1, 0)
    assert seen['latent_pacs_job_succeeded{job="scrub"}'] == 1
    assert seen['latent_pacs_job_done{job="scrub"}'] == seen['latent_pacs_job_total{job="scrub"}'] == 4
    assert seen['latent_pacs_certificate_expires_timestamp_seconds{key="tls.ca"}'] > time.time() + 86400
    assert not any(word in name for name in seen for word in PATIENT)
    assert (seen['latent_pacs_audit_alarms{kind="audit"}'], seen['latent_pacs_audit_alarm{kind="audit"}']) == (1, 0)
    assert (seen["latent_pacs_audit_audited"], seen["latent_pacs_audit_fsim_mean"]) == (7, 0.95)
    assert seen['latent_pacs_work_seconds_count{request="audit"}'] >= 1
    page = METRICS.read_text().partition("## Figures of the gate")[0]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    plain = {re.sub(r"(_bucket|_sum|_count|_created)?(\{.*)?$", "", name) for name in seen}
    assert {name.removeprefix("latent_pacs_") for name in plain} == documented
    with pytest.raises(urllib.error.URLError):
        scraped(port)


def test_connections_to_the_metrics_page_take_no_files_of_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The page has no password. A caller that sends no request only delays others that wait for the page."""
    monkeypatch.setattr(exposition._Request, "timeout", 0.2)
    port, callers = free_port(), 5
    settings = settings_for(tmp_path / "archive", metrics={"port": port}, archivist={"enabled": False})
    with Node(settings), ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(callers)]
        for caller in silent[::2]:
            caller.sendall(b"GET /metrics HTTP/1.0\r\n")
        assert "latent_pacs_backlog" in scraped(port)
        assert [caller.recv(1) for caller in silent] == [b""] * callers
    assert capfd.readouterr() == ("", "")


def test_a_caller_that_sends_byte_after_byte_delays_neither_the_page_nor_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition._Request, "timeout", 0.5)
    port = free_port()
    settings = settings_for(tmp_path / "archive", metrics={"port": port}, archivist={"enabled": False})
    for wanted in ("the page", "the stop"):
        with ExitStack() as stack:
            with Node(settings):
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
                sender = threading.Thread(target=byte_after_byte, args=(slow,), daemon=True)
                sender.start()
                if wanted == "the page":
                    scraped(port)
            sender.join(20)
            assert not sender.is_alive()


def byte_after_byte(caller: socket.socket) -> None:
    """Send a byte ten times a second, until the connection is closed."""
    with suppress(OSError):
        while True:
            caller.sendall(b"G")
            time.sleep(0.1)


def test_the_metrics_page_listens_on_ipv6_too(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "archive", metrics={"port": (port := free_port()), "host": "::1"})
    with Node(settings), urllib.request.urlopen(f"http://[::1]:{port}/metrics", timeout=300) as answer:
        assert b"latent_pacs_backlog" in answer.read()


def test_a_metrics_port_that_is_taken(tmp_path: Path) -> None:
    with Node(settings_for(tmp_path / "one")) as first:
        taken = first.server.port
        with pytest.raises(ConfigError, match=rf"metrics\.port {taken}"):
            Node(settings_for(tmp_path / "two", metrics={"port": taken})).start()


def record_of(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    raised = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("node.test", logging.ERROR, __file__, 1, message, arguments, raised)


def test_json_lines_keep_foreign_errors_to_themselves() -> None:
    try:
        raise ValueError("Müller^Anna is no date")
    except ValueError as error:
        line = JsonLines().format(record_of("store from %s failed: %s", "MODALITY", error, error=error))
    told = json.loads(line)
    assert told["message"] == "store from MODALITY failed: ValueError"
    assert (told["level"], told["logger"], told["error"]) == ("error", "node.test", "ValueError")
    assert told["at"][0].endswith("test_json_lines_keep_foreign_errors_to_themselves")
    assert "Anna" not in line
    told = json.loads(JsonLines().format(record_of("no: %s", ConfigError("node.port: what is wrong"))))
    assert told["message"] == "no: node.port: what is wrong"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["text", "json"])
def test_no_patient_in_the_log(tmp_path: Path, how: str) -> None:
    """Images are stored with and without errors, queried by name and retrieved. The node's log at its most verbose
    names no patient."""
    accept_odd_values()
    served = NodeProcess(tmp_path)
    raw = yaml.safe_load(served.config.read_text())
    raw |= {"log": {"format": how}, "reconstruct": {"upscaler": "bicubic"}}
    served.config.write_text(yaml.safe_dump(raw))
    try:
        served.start(verbose=True)
        sound, odd = mammogram(), mammogram(breast(200, 200))
        odd.PatientBirthDate, odd.StudyDate = "Anna", "Müller"
        files = [write(ds, tmp_path / f"{number}.dcm") for number, ds in enumerate((sound, odd))]
        client.store(files, served.address, calling="MODALITY", each=lambda *_: None)
        query = Dataset()
        query.QueryRetrieveLevel, query.PatientName, query.PatientID = "STUDY", "Müller*", "P0001"
        query.SpecificCharacterSet, query.StudyInstanceUID = "ISO_IR 100", ""
        assert client.find(query, served.address, calling="EXACTVIEW")
        served.signal(signal.SIGTERM)
        assert served.ended() == 0
    finally:
        if served.process is not None and served.process.poll() is None:
            served.process.kill()
            served.process.wait()
        served.log.close()
    text = Path(served.log.name).read_text(encoding="utf-8", errors="surrogateescape")
    assert "SIGTERM" in text
    assert "Association" in text, "verbose"
    assert not [word for word in PATIENT if word in text]
    if how == "json":
        lines = [json.loads(line) for line in text.splitlines()]
        assert {"time", "level", "logger", "message"} <= set(lines[0])
