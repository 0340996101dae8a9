"""Proves which presentation contexts a move destination is proposed, over how many associations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from node.config import Peer
from node.dimse.associations.sender import Destination, contexts_for

MG = "1.2.840.10008.5.1.4.1.1.1.2"


@pytest.mark.parametrize(
    ("held", "proposed"),
    [
        (JPEGLossless, {JPEGLossless, JPEGLosslessSV1}),
        (JPEGLosslessSV1, {JPEGLosslessSV1}),
        (JPEGLSLossless, {JPEGLSLossless}),
    ],
)
def test_the_default_of_lossless_jpeg_is_proposed_beside_the_other(held: str, proposed: set[str]) -> None:
    """PS3.5 10.2 names the default transfer syntax of lossless JPEG."""
    choice: Any = SimpleNamespace(
        sop_class_uid=MG, transfer_syntax_uid=held, instance=SimpleNamespace(transfer_syntax_uid=held)
    )
    contexts = contexts_for([choice])
    assert {context.abstract_syntax for context in contexts} == {MG}
    found = [syntax for context in contexts for syntax in context.transfer_syntax]
    assert len(found) == len(set(found)) == len(contexts)
    assert set(found) == proposed | {ExplicitVRLittleEndian, ImplicitVRLittleEndian}


def test_images_of_more_classes_than_fit_into_one_association_are_sent_over_several() -> None:
    """An association has at most 128 presentation contexts (PS3.8 7.1.1.13), and each of these images needs three. One
    association is open at a time."""
    choices: list[Any] = [_choice(f"1.2.{number}") for number in range(90)]
    outgoing = _Outgoing()
    with Destination(outgoing, Peer(ae_title="A", host="h", port=1), choices, priority=0) as destination:
        assert {destination.channel(choice).expected(choice) for choice in choices} == {JPEGLSLossless}
    assert [len(contexts) for contexts, _ in outgoing.opened] == [3 * 42, 3 * 42, 3 * 6]
    assert [assoc.released for _, assoc in outgoing.opened] == [1, 1, 1]


def _choice(sop_class: str) -> Any:
    held = SimpleNamespace(transfer_syntax_uid=JPEGLSLossless)
    return SimpleNamespace(sop_class_uid=sop_class, transfer_syntax_uid=JPEGLSLossless, instance=held)


class _Outgoing:
    """Opens associations whose peer accepts every context."""

    def __init__(self) -> None:
        self.opened: list[tuple[list[Any], _Association]] = []

    def associate(self, _: Peer, contexts: list[Any], **__: object) -> _Association:
        assert all(not assoc.is_established for _, assoc in self.opened)
        self.opened.append((contexts, _Association(contexts)))
        return self.opened[-1][1]


class _Association:
    def __init__(self, contexts: list[Any]) -> None:
        self.accepted_contexts = [
            SimpleNamespace(abstract_syntax=one.abstract_syntax, transfer_syntax=one.transfer_syntax, as_scu=True)
            for one in contexts
        ]
        self.is_established = True
        self.released = 0
        self.dimse = SimpleNamespace(send_msg=None, maximum_pdu_size=0)
        self.dul = SimpleNamespace(_send=None)

    def release(self) -> None:
        self.is_established = False
        self.released += 1
