"""Proves which copies annotations have that reference annotations with copies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.index import Index
from storage.index.integrity import Integrity
from storage.index.rewritten_annotations import copies
from storage.records import InstanceState, ReasonCode
from tests.support.index_rows import claimed, new_instance, new_rendition, url_of

IMAGE, STATE, REPORT, OTHER = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """One image, with a reconstruction."""
    opened = Index.open(url_of(tmp_path))
    opened.add(new_instance(IMAGE))
    assert opened.finish_with(claimed(opened), InstanceState.VERIFIED, new_rendition("2.25.1"))
    yield opened
    opened.close()


def pairs(index: Index, *uids: str, draw: bool | None = True) -> dict[str, dict[str, str]]:
    """For each annotation, by its UID, the UIDs that its copy replaces and their substitutes."""
    keys = {key_of(index, uid): uid for uid in uids}
    return {keys[key]: dict(copy.pairs) for key, copy in copies(index.engine, list(keys), draw=draw).items()}


def copy_of(index: Index, uid: str) -> str:
    key = key_of(index, uid)
    return copies(index.engine, [key])[key].uid


def key_of(index: Index, uid: str) -> int:
    held = index.by_uid(uid)
    assert held is not None
    return held.key


def test_a_copy_names_the_copy_of_another_annotation(index: Index) -> None:
    index.add(new_instance(OTHER, references=(REPORT,)))
    index.add(new_instance(REPORT, references=(IMAGE, STATE)))
    assert pairs(index, OTHER, REPORT) == {OTHER: {REPORT: copy_of(index, REPORT)}, REPORT: {IMAGE: "2.25.1"}}
    index.add(new_instance(STATE, references=(IMAGE,)))
    state = copy_of(index, STATE)
    assert pairs(index, REPORT) == {REPORT: {IMAGE: "2.25.1", STATE: state}}
    assert pairs(index, OTHER) == {OTHER: {REPORT: copy_of(index, REPORT)}}


def test_annotations_that_reference_each_other_name_each_other_as_received(index: Index) -> None:
    index.add(new_instance(STATE, references=(IMAGE, STATE)))
    index.add(new_instance(REPORT, references=(IMAGE, OTHER)))
    index.add(new_instance(OTHER, references=(REPORT,)))
    assert pairs(index, STATE, REPORT, OTHER) == {STATE: {IMAGE: "2.25.1"}, REPORT: {IMAGE: "2.25.1"}}


def test_annotations_of_images_without_reconstructions_have_no_copies(index: Index) -> None:
    index.add(new_instance(STATE, references=("1.2.3.99",)))
    index.add(new_instance(REPORT, references=(STATE,)))
    assert pairs(index, STATE, REPORT) == {}


def test_a_copy_names_what_the_peer_gets_instead_of_what_was_annotated(index: Index) -> None:
    """A viewer that gets reconstructions and copies names these in what it stores."""
    image = index.by_uid(IMAGE)
    assert image is not None
    assert image.rendition is not None
    structure = image.rendition.structure_uid
    index.add(new_instance(STATE, references=("2.25.1",)))
    index.add(new_instance(OTHER, references=(structure,)))
    former = copy_of(index, OTHER)
    index.add(new_instance(REPORT, references=("2.25.1", former)))
    assert pairs(index, STATE, OTHER, REPORT) == {OTHER: {structure: "2.25.1"}}

    assert pairs(index, STATE, OTHER, draw=False) == {STATE: {"2.25.1": structure}}
    assert pairs(index, STATE, OTHER, draw=None) == {STATE: {"2.25.1": IMAGE}, OTHER: {structure: IMAGE}}

    Integrity(index.engine).requeue(image.key, ReasonCode.OTHER, "a region was marked")
    assert pairs(index, STATE) == {STATE: {"2.25.1": IMAGE}}
    assert index.finish_with(claimed(index), InstanceState.VERIFIED, new_rendition("2.25.2"))
    assert pairs(index, STATE, OTHER) == {STATE: {"2.25.1": "2.25.2"}, OTHER: {structure: "2.25.2"}}
    assert pairs(index, REPORT) == {REPORT: {"2.25.1": "2.25.2", former: copy_of(index, OTHER)}}
