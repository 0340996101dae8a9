"""Opens report pages in Chromium: what it shows, which URLs it requests, and which errors it logs."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import need

_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--hide-scrollbars"),
    *("--virtual-time-budget=3000", "--enable-logging=stderr"),
)


_ITS_OWN = "not an origin"


@dataclass(frozen=True)
class Seen:
    """What Chromium saw. ``dom``: the loaded page. ``requests``: URLs other than its own and data URLs. ``console``:
    lines."""

    dom: str
    requests: list[str]
    console: list[str]


def open_page(page: Path, folder: Path, *more: str) -> Seen:
    """Open a page in Chromium. The test is skipped if Chromium is missing."""
    need("chromium")
    log = folder / "net.json"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = ["chromium", *_QUIET, profile, f"--log-net-log={log}", *more, "--dump-dom", page.absolute().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(done.stdout, _requests(log), console)


def screenshot(page: Path, picture: Path, folder: Path, *more: str) -> None:
    """The page as a PNG of 1200 pixels width."""
    need("chromium")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = ["chromium", *_QUIET, profile, f"--screenshot={picture}", "--window-size=1200,3000", *more]
    subprocess.run([*command, page.absolute().as_uri()], capture_output=True, timeout=300, check=True)


def _requests(log: Path) -> list[str]:
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    # the browser's own errands have no page as their initiator
    of_page = {one["url"] for one in asked if one.get("initiator", _ITS_OWN) != _ITS_OWN}
    return sorted(url for url in of_page if not url.startswith(("file:", "data:")))
