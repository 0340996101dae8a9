"""docs/CONFORMANCE.md says what the code does: statuses, SOP classes, private attributes, method terms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from node.archive.commitment import FailureReason
from node.archive.derive import PRIVATE_ATTRIBUTES
from node.archive.policy import PRIVATE_CREATOR, PRIVATE_GROUP
from node.config import ReconstructSettings
from node.dimse.models import ROOTS, STORAGE_COMMITMENT, VERIFICATION, WIRE_SYNTAXES
from node.dimse.status import ACTION_ERRORS, OTHER_ERROR, QUERY_ERRORS, STORE_ERRORS
from node.dimse.tls import CIPHERS
from node.reconstruct.upscalers.catalogue import Catalogue

TEXT = (Path(__file__).parent.parent / "docs" / "CONFORMANCE.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "table"), [("Storage", STORE_ERRORS), ("Query", QUERY_ERRORS), ("Retrieve", QUERY_ERRORS)]
)
def test_every_status_of_the_table_is_listed(title: str, table: dict) -> None:  # type: ignore[type-arg]
    for meaning in (*table.values(), OTHER_ERROR):
        assert f"| {meaning.code:04X} | {meaning.means} |" in section(title)


def test_storage_lists_no_other_status() -> None:
    listed = {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) \|", section("Storage"), re.M)}
    known = {meaning.code for meaning in (*STORE_ERRORS.values(), OTHER_ERROR)}
    assert listed == known | {0x0000, 0xB007, 0x0124}


def test_services() -> None:
    listed = set(re.findall(r"1\.2\.840\.10008\.[0-9.]*[0-9]", section("Services")))
    assert listed == {VERIFICATION, STORAGE_COMMITMENT, *ROOTS}


def test_storage_commitment() -> None:
    text = section("Storage commitment")
    actions, reasons = text.split("| Failure Reason")
    listed = dict(re.findall(r"^\| ([0-9A-F]{4}) \| (.+) \|$", actions, re.M))
    assert {code: listed[f"{code:04X}"] for code in ACTION_ERRORS} == {
        code: meaning.means for code, meaning in ACTION_ERRORS.items()
    }
    assert set(listed) == {f"{code:04X}" for code in (*ACTION_ERRORS, 0x0000, 0x0124)}
    assert {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) \|", reasons, re.M)} == set(FailureReason)


def test_transfer_syntaxes_by_name() -> None:
    listed = dict(re.findall(r"^\| (\w+) \| (1\.2\.840[0-9.]+) \|$", section("Retrieve"), re.M))
    assert listed == WIRE_SYNTAXES


def test_ciphers() -> None:
    assert tuple(re.findall(r"^- (\S+)$", section("Security"), re.M)) == CIPHERS


def test_private_attributes() -> None:
    text = section("What a reconstruction says about itself")
    assert f"creator `{PRIVATE_CREATOR}`, group {PRIVATE_GROUP:04X}" in text
    listed = re.findall(r"^\| \(0099,xx([0-9A-F]{2})\) \| ([A-Z]{2}) \| (.+) \|$", text, re.M)
    assert {int(offset, 16): (vr, what) for offset, vr, what in listed} == PRIVATE_ATTRIBUTES


@pytest.mark.parametrize("name", ["mammo", "bicubic", "sd_x2"])
def test_method_terms_are_declared(name: str) -> None:
    settings = ReconstructSettings.model_validate({"upscaler": name})
    assert Catalogue(settings).configured().method in section("What a reconstruction says about itself")
