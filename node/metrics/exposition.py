"""Serves the page that Prometheus scrapes. Counts come from the index, so every node of a group shows the same.

Labels and values contain no patient data.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Gauge, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily

from node.config import MetricsSettings
from node.metrics.timing import Observe
from storage.errors import ConfigError
from storage.index import Index
from storage.index.holding_counts import monitoring_counts
from storage.index.job_runs import JobRows, StoredJob
from storage.index.report_rows import ReportRows
from storage.records import HoldingCounts

COUNT_INTERVAL = 15.0
"""Least time between two counts of the index, in seconds. Chosen, not measured."""
_REST = 20.0
"""Least time between two counts, over the time that a count takes. With 100,000 images it takes 2.5 s on two cores."""

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds of the histograms' buckets, in seconds."""


class Exposition:
    """Metrics of one node, served on ``metrics.port`` from ``start`` to ``stop``.

    ``expiries``: expiry times of the node's TLS certificates, in seconds since the epoch, by their key in config.yaml.
    """

    def __init__(self, settings: MetricsSettings, index: Index, expiries: Mapping[str, float]) -> None:
        self._settings = settings
        self._registry = CollectorRegistry()
        self._registry.register(_Counted(index))
        name = "latent_pacs_certificate_expires_timestamp_seconds"
        ends = Gauge(name, "When the certificate in a file of config.yaml expires", ["key"], registry=self._registry)
        for key, at in expiries.items():
            ends.labels(key).set(at)
        self.ingest = self._timer("ingest", "C-STORE: from the last byte until it is durable and indexed", "outcome")
        self.retrieve = self._timer("retrieve", "Making one image ready to be sent", "outcome")
        self.work = self._timer(
            "work", "Requests to the worker processes, including their wait in the queue", "request"
        )
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start serving. Raises ConfigError if the port cannot be used."""
        port, host = self._settings.port, self._settings.host
        try:
            kind = _ServerOfIPv6 if ":" in host else _Server
            self._server = make_server(host, port, make_wsgi_app(self._registry), kind, _Request)
        except OSError as error:
            raise ConfigError(f"metrics.port {port} on {host} cannot be used: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def _timer(self, name: str, text: str, label: str) -> Observe:
        histogram = Histogram(f"latent_pacs_{name}_seconds", text, [label], buckets=_SECONDS, registry=self._registry)

        def observe(outcome: str, seconds: float) -> None:
            histogram.labels(outcome).observe(seconds)

        return observe


class _Request(WSGIRequestHandler):
    """One request, which is not logged."""

    timeout = 5.0
    """Seconds to wait for the next bytes of the request."""

    def handle(self) -> None:
        """Answer the request, and read from the caller for at most twice ``timeout``.

        A caller that sends a byte now and then would otherwise block all others, and the stop of the node.
        """
        late = threading.Timer(2 * self.timeout, self._read_no_more)  # writing the answer may take longer
        late.daemon = True
        late.start()
        try:
            super().handle()
        finally:
            late.cancel()

    def _read_no_more(self) -> None:
        with suppress(OSError):  # the connection was closed meanwhile
            self.connection.shutdown(socket.SHUT_RD)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class _Server(WSGIServer):
    """Serves one connection at a time, so that idle ones do not use up the node's threads and file descriptors."""

    def handle_error(self, *_: Any) -> None:
        """Log nothing if a caller sends no request in time, or disconnects."""


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6


class _Counted:
    """Gauges that are read from the index when they are scraped. Between two counts the last ones are served again."""

    def __init__(self, index: Index) -> None:
        self._index, self._lock = index, threading.Lock()
        self._due_at, self._gauges = 0.0, list[Any]()

    def describe(self) -> Iterator[Any]:
        """Yield nothing. Without this method the registry would count everything once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        with self._lock:
            if (began := time.monotonic()) >= self._due_at:
                held, counted = monitoring_counts(self._index.engine), JobRows(self._index.engine).all()
                self._gauges = [*_holdings(*held), *_jobs(counted), *_reports(ReportRows(self._index.engine))]
                self._due_at = time.monotonic() + max(COUNT_INTERVAL, _REST * (time.monotonic() - began))
            return iter(self._gauges)


def _holdings(counts: HoldingCounts, gate_failures: int) -> Iterator[Any]:
    yield _gauge("instances", "Instances held, by state", "state", counts.by_state)
    yield _gauge("bytes", "Bytes of objects on disk, by kind", "kind", counts.bytes_by_kind)
    yield _plain("backlog", "Instances that have not been encoded yet", counts.backlog)
    yield _plain("quarantined", "Objects in quarantine", counts.quarantined)
    yield _plain("gate_failures", "Images of which no operating point passed the gate", gate_failures)
    yield _plain("damage_open", "Damaged or missing objects that have not been repaired", counts.damaged)


def _jobs(rows: list[StoredJob]) -> Iterator[Any]:
    ran = {row.name: row.last for row in rows if row.last is not None}
    ended = {name: run.ended_at for name, run in ran.items() if run.ended_at is not None}
    yield _gauge("job_running", "1 while a run is in progress", "job", {row.name: int(row.running) for row in rows})
    yield _gauge("job_paused", "1 while a job is paused", "job", {row.name: int(row.paused) for row in rows})
    yield _gauge("job_done", "Items that the latest run has done", "job", {name: run.done for name, run in ran.items()})
    yield _gauge(
        "job_total", "Items that the latest run has to do", "job", {name: run.total for name, run in ran.items()}
    )
    yield _gauge("job_ended_timestamp_seconds", "When the latest run ended", "job", ended)
    good = {name: int(run.state == "done") for name, run in ran.items() if name in ended}
    yield _gauge("job_succeeded", "1 if the latest run succeeded, 0 if it failed or was interrupted", "job", good)
    report = ran["scrub"].report if "scrub" in ran else {}
    for name, text in (("checked", "Objects read by the latest scrub"), ("damaged", "Objects it found damaged")):
        if name in report:
            yield _plain(f"scrub_{name}", text, report[name])


def _reports(rows: ReportRows) -> Iterator[Any]:
    """Gauges of audits and validations."""
    alarms = rows.alarms()
    latest = {kind: rows.newest([kind])[0] for kind in alarms}
    yield _gauge("audit_alarms", "Reports that raised an alarm, by kind", "kind", alarms)
    newest = {kind: int(one.alarm) for kind, one in latest.items()}
    yield _gauge("audit_alarm", "1 if the newest report raised an alarm", "kind", newest)
    ended = {kind: one.finished_at for kind, one in latest.items()}
    yield _gauge("audit_timestamp_seconds", "When the newest report was made", "kind", ended)
    summary = latest["audit"].summary if "audit" in latest else {}
    for name, text in _AUDIT_FIGURES.items():
        if summary.get(name) is not None:
            yield _plain(f"audit_{name}", text, summary[name])


_AUDIT_FIGURES = {
    "audited": "Images that the newest audit decoded again",
    "failed": "Of these, images that failed",
    "drifting": "Control charts that raised an alarm",
    "fsim_mean": "Mean tile FSIM that it measured",
    "psnr_db": "Mean PSNR that it measured, dB",
}


def _gauge(name: str, text: str, label: str, values: dict[str, Any]) -> Any:
    family = GaugeMetricFamily(f"latent_pacs_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _plain(name: str, text: str, value: float) -> Any:
    return GaugeMetricFamily(f"latent_pacs_{name}", text, value=value)
