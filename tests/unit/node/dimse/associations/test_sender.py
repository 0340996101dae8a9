"""Proves which presentation contexts a move destination is proposed."""

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

from node.dimse.associations.sender import contexts_for

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
