"""docs/CONFORMANCE.md says what the code does: SOP classes, transfer syntaxes, statuses, private attributes, terms.

It also has the order of PS3.2 Annex A. Headings are found here by their titles.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom.uid import UID

from node.app import Node
from node.archive.intake.eligibility import PRIVATE_CREATOR, PRIVATE_GROUP
from node.archive.originals.storage_commitment import FailureReason
from node.archive.serve.derived_header import PRIVATE_ATTRIBUTES
from node.config import ReconstructSettings
from node.dimse import dimse_status
from node.dimse.dimse_status import ACTION_ERRORS, OTHER_ERROR, QUERY_ERRORS, STORE_ERRORS
from node.dimse.sop_classes import (
    ROOTS,
    STORAGE_CLASSES,
    STORAGE_COMMITMENT,
    TRANSFER_SYNTAXES,
    VERIFICATION,
    WIRE_SYNTAXES,
)
from node.dimse.tls import CIPHERS
from node.upscalers.catalogue import Catalogue
from storage.dicom.dicomfile import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from tests.conftest import settings_for
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "CONFORMANCE.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, given without its number, up to the next heading of the same or a higher level."""
    heading = re.search(rf"^(#+) [\d.]+ {re.escape(title)}\n", TEXT, re.M)
    assert heading, title
    return re.split(rf"^#{{1,{len(heading[1])}}} ", TEXT[heading.end() :], maxsplit=1, flags=re.M)[0]


def test_the_order_is_that_of_the_standard() -> None:
    numbers = [tuple(map(int, number.split("."))) for number in re.findall(r"^#+ ([\d.]+) ", TEXT, re.M)]
    assert numbers == sorted(numbers)
    assert re.findall(r"^## \d (.+)$", TEXT, re.M) == [
        "Conformance statement overview",
        "Table of contents",
        "Introduction",
        "Networking",
        "Media interchange",
        "Support of character sets",
        "Security",
        "Annexes",
    ]
    for number, title in re.findall(r"^### ([48]\.\d) (.+)$", TEXT, re.M):
        assert f"{number} {title}" in section("Table of contents").replace("\n   ", " ")


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


def listed_uids(title: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([0-9.]+) \| (.*?) ?\|$", section(title), re.M))


@pytest.mark.parametrize(
    ("title", "uids"), [("Storage SOP classes", STORAGE_CLASSES), ("Transfer syntaxes", TRANSFER_SYNTAXES)]
)
def test_every_uid_is_listed_by_its_name(title: str, uids: tuple[str, ...]) -> None:
    named = {uid: UID(uid).name if UID(uid).name != uid else "" for uid in uids}
    assert listed_uids(title) == named


def test_what_is_listed_is_what_is_offered(tmp_path: Path) -> None:
    """The server itself is asked, before it listens."""
    node = Node(settings_for(tmp_path))
    offered = {str(one.abstract_syntax): one.transfer_syntax for one in node.server.entity.supported_contexts}
    node.stop()
    services = set(re.findall(r"1\.2\.840\.10008\.[0-9.]*[0-9]", section("Conformance statement overview")))
    assert set(offered) == services | set(listed_uids("Storage SOP classes"))
    for uid in listed_uids("Storage SOP classes"):
        assert set(map(str, offered[uid])) == set(listed_uids("Transfer syntaxes"))


def test_services() -> None:
    listed = set(re.findall(r"1\.2\.840\.10008\.[0-9.]*[0-9]", section("Conformance statement overview")))
    assert listed == {VERIFICATION, STORAGE_COMMITMENT, *ROOTS}


def test_retrieve_lists_no_other_status() -> None:
    """The statuses are those of node/dimse/handlers/c_move_c_get.py, without any that is never sent."""
    listed = {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) \|", section("Retrieve"), re.M)}
    known = {meaning.code for meaning in (*QUERY_ERRORS.values(), OTHER_ERROR)}
    of_retrieve = (dimse_status.SUBOPERATIONS_FAILED, dimse_status.CANNOT_COUNT, dimse_status.ALL_SUBOPERATIONS_FAILED)
    assert listed == known | {*of_retrieve, dimse_status.SUCCESS, dimse_status.CANCELLED} | {
        dimse_status.DESTINATION_UNKNOWN,
        dimse_status.NOT_AUTHORIZED,
    }


def test_query_lists_no_other_status() -> None:
    listed = {
        int(code, 16)
        for codes in re.findall(r"^\| ([0-9A-F, ]{4,}) \|", section("Query"), re.M)
        for code in codes.split(", ")
    }
    known = {meaning.code for meaning in (*QUERY_ERRORS.values(), OTHER_ERROR)}
    assert listed == known | {0xFF00, 0xFF01, dimse_status.CANCELLED, dimse_status.NOT_AUTHORIZED}


def test_implementation() -> None:
    assert IMPLEMENTATION_CLASS_UID in section("Association policies")
    assert IMPLEMENTATION_VERSION_NAME in section("Association policies")


def test_storage_commitment() -> None:
    text = section("Storage commitment")
    actions, reasons = text.split("| Failure Reason")
    listed = dict(re.findall(r"^\| ([0-9A-F]{4}) \| (.+) \|$", actions, re.M))
    assert {code: listed[f"{code:04X}"] for code in ACTION_ERRORS} == ACTION_ERRORS
    assert set(listed) == {f"{code:04X}" for code in (*ACTION_ERRORS, 0x0000, 0x0124)}
    assert {int(code, 16) for code in re.findall(r"^\| ([0-9A-F]{4}) \|", reasons, re.M)} == set(FailureReason)


def test_transfer_syntaxes_by_name() -> None:
    listed = dict(re.findall(r"^\| (\w+) \| (1\.2\.840[0-9.]+) \|$", section("Retrieve"), re.M))
    assert listed == WIRE_SYNTAXES


def test_ciphers() -> None:
    assert tuple(re.findall(r"^- (\S+)$", section("Security"), re.M)) == CIPHERS


def test_private_attributes() -> None:
    text = section("Data dictionary of private attributes")
    assert f"Creator `{PRIVATE_CREATOR}`, group {PRIVATE_GROUP:04X}" in text
    listed = re.findall(r"^\| \(0099,xx([0-9A-F]{2})\) \| ([A-Z]{2}) \| (.+) \|$", text, re.M)
    assert {int(offset, 16): (vr, what) for offset, vr, what in listed} == PRIVATE_ATTRIBUTES


@pytest.mark.parametrize("name", ["mammo", "bicubic", "sd_x2"])
def test_method_terms_are_declared(name: str) -> None:
    settings = ReconstructSettings.model_validate({"upscaler": name})
    assert Catalogue(settings).configured().method in section("What a reconstruction says about itself")
