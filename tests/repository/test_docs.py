"""Documents say what the tree holds: their links, files and names, and the constants of the encoder."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from node.config import Settings, parse
from tests.support.layers import LAYERS, name_of
from tests.support.paths import ROOT, modules

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ENCODER = (ROOT / "docs/ENCODER.md").read_text(encoding="utf-8")
MODULES = (
    "node/codec/encode/search_sample.py",
    "node/codec/encode/forecasts.py",
    "node/codec/encode/search.py",
    "node/codec/encode/base_coding.py",
    "node/codec/encode/source_image.py",
    "node/codec/encode/padding_fill.py",
    "node/codec/encode/air_noise.py",
    "node/codec/encode/quantiser_walk.py",
    "node/codec/encode/repairs.py",
    "node/codec/encode/noise_fitting.py",
    "node/codec/noise.py",
    "node/codec/residuals.py",
    "node/codec/encode/point_fitting.py",
    "node/codec/points.py",
    "node/codec/fingerprint.py",
    "node/fidelity/breast_regions.py",
    "node/fidelity/windows.py",
    "node/fidelity/lines.py",
    "node/fidelity/bands.py",
    "node/fidelity/specks.py",
    "node/fidelity/gate.py",
    "node/fidelity/repetition.py",
    "storage/formats/geometry.py",
)


def constants_in(module: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each module-level constant whose definition has a number."""
    loaded = import_module(module.removesuffix(".py").replace("/", "."))
    for statement in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        else:
            continue
        if statement.value is None or not any(_is_number(node) for node in ast.walk(statement.value)):
            continue
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    yield name.id, getattr(loaded, name.id)


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def documented_for(module: str) -> dict[str, tuple[Any, list[str]]]:
    """Value and further cells of each row of the table under a module's heading, by the name in the row."""
    part = ENCODER.split(f"\n### {module}\n")[1].split("\n### ")[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `*"): (ast.literal_eval(cells[1].strip(" `")), cells[2:]) for cells in rows}


@pytest.mark.parametrize("module", MODULES)
def test_every_constant_is_documented_with_its_value(module: str) -> None:
    constants, documented = dict(constants_in(module)), documented_for(module)
    assert constants, "the test finds nothing"
    assert set(documented) == set(constants)
    for name, value in constants.items():
        told, cells = documented[name]
        assert told == (round(value, 4) if isinstance(value, float) else value), name
        assert len(cells) == 3, f"{name}: unit, what it does, how it was found"
        assert all(cell.strip(" |") for cell in cells), f"{name} has an empty cell"


def test_every_documented_module_is_tested() -> None:
    assert tuple(re.findall(r"^### (\S+/\S+\.py)$", ENCODER, re.M)) == MODULES


# --- every page -------------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The anchor that GitHub and MkDocs give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors_in(page: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http:", "https:")):
            continue
        file, _, fragment = target.partition("#")
        led = page.parent / file if file else page
        assert led.exists(), f"{page.name} links to {target}"
        if fragment:
            assert fragment in anchors_in(led), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths such as ``node/codec/decode.py``; with ``::`` a class, function or constant in it follows."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:node|storage|tests|benchmarks)/[\w/]+\.py)(?:::([\w.]+\w))?", text)
    for file, name in named:
        assert (ROOT / file).is_file(), f"{page.name} names {file}"
        if name:
            assert name in definitions_in(ROOT / file), f"{page.name} names {file}::{name}"


def definitions_in(file: Path) -> set[str]:
    """The names that a module defines. Names in a class are preceded by that of the class."""
    found = set()
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            found.add(statement.name)
        if isinstance(statement, ast.ClassDef):
            found |= {f"{statement.name}.{one.name}" for one in statement.body if isinstance(one, ast.FunctionDef)}
    return found


def keys_of(section: type[BaseModel]) -> set[str]:
    """The keys of a section of config.yaml. Keys of a nested section have its name and a dot in front."""
    found = set()
    for name, field in section.model_fields.items():
        kind = field.annotation
        found.add(name)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= {f"{name}.{key}" for key in keys_of(kind)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_config_keys_that_are_named_exist(page: Path) -> None:
    """Keys such as ``node.shutdown_timeout`` in backquotes; modules are no keys."""
    sections = "|".join(name for name in Settings.model_fields if name not in ("peers", "log"))
    named = set(re.findall(rf"`((?:{sections})(?:\.[a-z_0-9]+)+)(?::[^`]*)?`", page.read_text(encoding="utf-8")))
    named -= {name for path in modules() for name in (name_of(path), name_of(path.parent))}
    assert named <= keys_of(Settings)


def test_configurations_that_are_shown_can_be_used() -> None:
    shown = [
        block
        for page in PAGES
        for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    ]
    assert shown
    for block in shown:
        parse(yaml.safe_load(block), "a document")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_every_layer_is_explained() -> None:
    folders = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8").split("\n## Folders\n")[1]
    for layer in LAYERS:
        assert f"`{layer.replace('.', '/')}" in folders, layer


# --- the web site -----------------------------------------------------------------------------------------------


def test_the_pages_of_the_site_are_collected(tmp_path: Path) -> None:
    spec = spec_from_file_location("pages", ROOT / "docs/pages.py")
    assert spec and spec.loader
    pages = module_from_spec(spec)
    spec.loader.exec_module(pages)
    pages.collect(tmp_path)
    nav = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(nav)
    assert all((tmp_path / name).is_file() for name in nav)
    assert "::: storage.formats.payload\n" in (tmp_path / "api/storage.formats.md").read_text(encoding="utf-8")


# --- the log ----------------------------------------------------------------------------------------------------


def loggers() -> set[str]:
    """The names of the loggers that write warnings or errors."""
    found = {"pynetdicom"}
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if re.search(r"^ +LOGGER\.(warning|error|exception)\(", text, re.M):
            named = re.search(r'^LOGGER = logging\.getLogger\("(.+)"\)$', text, re.M)
            found.add(named[1] if named else name_of(path))
    return found


def test_every_logger_is_explained() -> None:
    """A logger has a row of its own, or one of a package that contains it."""
    part = (ROOT / "docs/OPERATIONS.md").read_text(encoding="utf-8").split("\n## What each log line asks for\n")[1]
    rows = re.findall(r"^\| (`[^|]+`) \|", part.split("\n## ")[0], re.M)
    explained = set(re.findall(r"`([^`]+)`", " ".join(rows)))
    rows_of = {logger: {one for one in explained if f"{logger}.".startswith(f"{one}.")} for logger in loggers()}
    assert [logger for logger, found in rows_of.items() if not found] == []
    assert explained - set().union(*rows_of.values()) == set(), "no such logger"
