"""Proves that a short, seeded run of benchmarks/torture.py finds no fault, and that docs/RELIABILITY.md names a test
for each fault.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.mutations import fuzz_in_process_of_its_own
from storage.dicom.dicomfile import HeaderBytes
from storage.errors import Unparseable
from tests.support.named import ROOT, is_there

RELIABILITY = (ROOT / "docs/RELIABILITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", RELIABILITY)))


@pytest.mark.slow
def test_two_thousand_mutants_do_no_harm(tmp_path: Path) -> None:
    done = fuzz_in_process_of_its_own(1, 0, 2000, 600, tmp_path)
    assert (done["tried"], done["crashes"]) == (2000, [])
    assert done["kinds"] == dict.fromkeys(("command", "file", "payload", "request"), 500)
    assert done["refused"] > 200


def test_the_death_of_the_fuzzed_process_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert len(fuzz_in_process_of_its_own(1, 0, 10, 5, tmp_path)["crashes"]) == 1


def test_a_header_in_no_transfer_syntax_is_unparseable() -> None:
    """benchmarks/torture.py found this in a payload whose metadata had been changed."""
    with pytest.raises(Unparseable, match="transfer syntax"):
        HeaderBytes("1.2.840.10008.5.1.4.1.1.2", b"", b"").dataset()


@pytest.mark.very_slow
@pytest.mark.timeout(300)
def test_a_minute_of_torture(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.torture", "--minutes", "1", "--seed", "3", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["found"]) == (0, [])
    assert (report["lost"], report["wrong_success"], report["crashes"]) == (0, 0, 0)
    assert report["kills"] > 3
    assert report["fuzzed"] > 1000


# --- docs/RELIABILITY.md ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    assert is_there(name)


def test_every_fault_names_a_test() -> None:
    rows = RELIABILITY.partition("## Faults")[2].partition("## Results")[0].strip().splitlines()
    faults = [row for row in rows if row.startswith("|")][2:]
    assert len(faults) > 25
    for row in faults:
        cells = [cell.strip() for cell in row.strip("| ").split(" | ")]
        assert len(cells) == 5, row
        assert re.search(r"tests/[\w/]+\.py::test_\w+", cells[4]), row
