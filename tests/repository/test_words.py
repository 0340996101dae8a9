"""Words that docs/GLOSSARY.md replaced do not come back: in names, documents, configuration and the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from node.cli.main import app
from tests.support.paths import ROOT

RETIRED = {
    "rung": "operating point",
    "ladder": "operating points",
    "climb": "search",
    "custodian": "packing",
    "custody": "original location",
    "doom": "mark as garbage",
    "condemn": "plan or mark",
    "bury": "delete rows",
    "shelf": "model store",
    "desk": "review",
    "hands": "encoder workers",
    "plates": "training patches",
    "upkeep": "integrity",
    "mending": "repair",
    "mended": "repaired",
}
"""Each retired word, and the term that stands in its place."""

ALLOWED: dict[str, tuple[str, ...]] = {}
"""For a retired word, the paths below which it may still occur."""

TESTS = re.compile(r"tests/[\w/]+\.py(::\w+)?")
PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def words_of(text: str) -> set[str]:
    """The words of a text or an identifier, in lower case; ``OriginalCustody`` has two."""
    return {part.lower() for part in PART.findall(text)}


def inflected(word: str) -> set[str]:
    return {word, f"{word}s", f"{word}ed", f"{word}ing"}


def names_in(path: Path) -> Iterator[str]:
    """The names that a module defines: its own, classes, functions, parameters, variables and attributes."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def help_of(command: Any) -> Iterator[str]:
    """The name, the help and the options' help of a command and of all below it."""
    yield from (command.name or "", command.help or "")
    for parameter in command.params:
        yield from (*parameter.opts, getattr(parameter, "help", "") or "")
    for below in getattr(command, "commands", {}).values():
        yield from help_of(below)


@cache
def words_by_place() -> dict[str, set[str]]:
    """The words of each module's names, of each document, of config.yaml, and of the command line's help."""
    modules = [path for folder in ("node", "storage", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "config.yaml"]
    found = {str(path.relative_to(ROOT)): words_of(" ".join(names_in(path))) for path in modules}
    for page in pages:
        found[str(page.relative_to(ROOT))] = words_of(TESTS.sub("", page.read_text(encoding="utf-8")))
    return found | {"latent-pacs --help": words_of(" ".join(help_of(get_command(app))))}


def places_of(word: str) -> list[str]:
    return sorted(place for place, words in words_by_place().items() if words & inflected(word))


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_do_not_come_back(word: str) -> None:
    allowed = ALLOWED.get(word, ())
    left = [place for place in places_of(word) if not place.startswith(allowed)]
    assert left == [], f"say {RETIRED[word]!r} instead of {word!r}"


def test_nothing_is_allowed_that_is_gone() -> None:
    for word, paths in ALLOWED.items():
        for path in paths:
            assert any(place.startswith(path) for place in places_of(word)), f"remove {word!r}: {path!r} from ALLOWED"


def test_the_glossary_is_short_and_sorted() -> None:
    """Twenty to forty terms, alphabetical in each table, each explained by whole sentences or one noun phrase."""
    text = (ROOT / "docs/GLOSSARY.md").read_text(encoding="utf-8")
    tables = [re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", part, re.M)[1:] for part in text.split("\n## ")[1:]]
    terms = [[term for term, _ in table] for table in tables]
    assert 20 <= sum(map(len, terms)) <= 40
    for table in terms:
        assert table == sorted(table)
    assert all(meaning.endswith(".") for table in tables for _, meaning in table)
