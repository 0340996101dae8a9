"""Proves that docs/THREATS.md names a test for each answer, and the answers that only the code can prove."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from node.cli.commands.sbom import bill_of_materials
from node.config import parse
from storage.errors import ConfigError
from tests.support.named import is_there
from tests.support.paths import ROOT, modules

THREATS = (ROOT / "docs/THREATS.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", THREATS)))


@pytest.mark.parametrize("name", NAMED)
def test_every_test_that_is_named_exists(name: str) -> None:
    assert is_there(name)


def test_every_answer_names_a_test() -> None:
    rows = THREATS.partition("## Answers")[2].partition("## What")[0].strip().splitlines()[2:]
    assert len(rows) > 20
    for row in rows:
        proof = row.rstrip("| ").rpartition("|")[2]
        assert "tests/" in proof or proof.strip() == "none: encryption is the task of the system", row


# --- what is read runs no code ----------------------------------------------------------------------------------

READERS = {"node/validation/features.py", "node/training/trainer.py", "node/training/sd_decoder.py"}
"""Read tensors by torch.load: checkpoints that this archive wrote, and the file that torchvision publishes."""
FORBIDDEN = {
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "marshal.load",
        "marshal.loads",
        "joblib.load",
        "eval",
        "exec",
    ),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen", "shelve.open"),
}


def calls(path: Path) -> list[tuple[str, dict[str, object]]]:
    """The name and the constant keywords of every call in a module."""
    found = []
    for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(one, ast.Call):
            keywords = {str(word.arg): getattr(word.value, "value", None) for word in one.keywords}
            found.append((ast.unparse(one.func), keywords))
    return found


@pytest.mark.slow
def test_nothing_that_can_run_code_is_read() -> None:
    for path in modules():
        relative = str(path.relative_to(ROOT))
        for name, keywords in calls(path):
            assert name not in FORBIDDEN, f"{relative} calls {name}"
            assert keywords.get("shell") is not True, f"{relative} starts a shell"
            assert keywords.get("allow_pickle") is not True, f"{relative} reads pickles"
            if name == "torch.load":
                assert keywords.get("weights_only") is True, f"{relative} reads more than tensors"
                assert relative in READERS, f"{relative} reads a file by torch.load"
            if name in ("np.load", "numpy.load"):
                assert keywords.get("allow_pickle") is False, relative
            if name.endswith(".from_pretrained"):
                assert keywords.get("use_safetensors") is True, f"{relative} may read pickled weights"


# --- secrets ----------------------------------------------------------------------------------------------------


def test_secrets_come_from_elsewhere_and_are_not_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+psycopg://archive:verysecret@db/index"
    file = tmp_path / "url"
    file.write_text(url + "\n")
    monkeypatch.setenv("ARCHIVE_DATABASE", url)
    for value in (url, f"file:{file}", "env:ARCHIVE_DATABASE"):
        settings = parse({"storage": {"database": value}}, "test")
        assert settings.storage.database_url == url
        assert "verysecret" not in repr(settings)
    for value in ("env:NOT_SET_ANYWHERE", f"file:{tmp_path}/missing"):
        with pytest.raises(ConfigError, match=r"storage\.database"):
            _ = parse({"storage": {"database": value}}, "test").storage.database_url
    with pytest.raises(ConfigError) as raised:
        parse({"storage": {"database": url, "min_free": "much"}}, "test")
    assert "verysecret" not in str(raised.value)


# --- what is installed ------------------------------------------------------------------------------------------


def test_the_bill_of_materials_lists_what_is_needed() -> None:
    bill = bill_of_materials()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    names = {one["name"].lower() for one in bill["components"]}
    assert {"pydicom", "pynetdicom", "torch", "sqlalchemy", "imagecodecs"} <= names
    assert all(one["version"] and one["purl"].startswith("pkg:pypi/") for one in bill["components"])
