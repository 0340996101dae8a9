"""Proves that every benchmark can be imported and has a description, and what it makes of given figures."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.ablation import PLAIN, VARIATIONS
from benchmarks.ablation import pooled as pooled_variations
from benchmarks.archivist import watched
from benchmarks.coded import EXACT
from benchmarks.storage import pooled
from node.codec.encode import search_sample
from node.codec.encode.search import Encoder

MODULES = sorted(path.stem for path in Path(benchmarks.__path__[0]).glob("*.py") if path.stem != "__init__")
PARTS = {
    *("attack", "coded", "contests", "hotelling", "kills", "ledger", "losses", "mutants", "mutations", "phantoms"),
    *("rivals", "samples", "sheets", "signals", "traffic", "upper_layer", "victim"),
}
"""Modules that are not programs."""


@pytest.mark.parametrize("name", MODULES)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
    if name in PARTS:
        return
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_no_benchmark_imports_tests() -> None:
    for name in MODULES:
        source = Path(benchmarks.__path__[0], f"{name}.py").read_text(encoding="utf-8")
        assert "from tests" not in source, name
        assert "import tests" not in source, name


def test_storage_is_pooled_by_kind() -> None:
    rows = [
        {"kind": "film", "raw": 100, "lossless": 50, "hot": 2, "rival": 4, "hot_over_rival": 0.5, "point": "x2"},
        {"kind": "film", "raw": 100, "lossless": 50, "hot": 6, "rival": 4, "hot_over_rival": 1.5, "point": "x1"},
        {"kind": "digital", "raw": 60, "lossless": 20, "hot": 20, "rival": 20, "hot_over_rival": 1.0, "point": EXACT},
    ]
    film, digital, everything = pooled(rows)
    assert (film["group"], film["images"], film["hot"], film["lossless_over_hot"]) == ("film", 2, 8, 12.5)
    assert (film["hot_over_rival"], film["worst"], film["exact"]) == (1.0, 1.5, 0)
    assert (digital["exact"], digital["hot"]) == (1, 20)
    assert (everything["images"], everything["raw"]) == (3, 260)


def test_variations_are_applied_and_taken_back() -> None:
    before = search_sample.SQUARES
    assert VARIATIONS[0] is PLAIN
    [few] = [each for each in VARIATIONS if each.name == "sample 12"]
    with few.applied():
        assert search_sample.SQUARES == 12
    assert before == search_sample.SQUARES
    rows = [
        {"variation": name, "image": "a", "bytes": size, "point": "x2", "seconds": 1.0}
        for name, size in (("unchanged", 100), ("effort 5", 110))
    ]
    assert [row["ratio"] for row in pooled_variations(rows)] == [1.0, 1.1]


def test_a_part_within_a_part_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_attempt", lambda _: 1)
    monkeypatch.setattr(Encoder, "_forecasts", lambda self: (self._attempt() for _ in range(3)))
    encoder = Encoder.__new__(Encoder)
    with watched() as spent:
        assert list(encoder._forecasts()) == [1, 1, 1]
        assert spent["sample"] > 0
        assert spent["attempts"] == 0
        encoder._attempt()
        assert spent["attempts"] > 0
