"""Proves which response to a report of storage commitment is an answer."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.presentation import build_context

from node.dimse.pynetdicom_patches.event_report import report_event
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE


@pytest.mark.parametrize("status", [0x0000, 0x0110, None])
def test_a_response_without_a_status_accepts_nothing(monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    agreed = build_context(STORAGE_COMMITMENT, ImplicitVRLittleEndian)
    agreed.context_id = 1
    assoc._accepted_cx = {1: agreed}
    monkeypatch.setattr(assoc.dimse, "send_msg", lambda primitive, context_id: None)
    monkeypatch.setattr(assoc.dul, "is_alive", lambda: True)
    response = N_EVENT_REPORT()
    response.MessageIDBeingRespondedTo = 1
    if status is not None:
        response.Status = status
    assoc.dimse.msg_queue.put((1, response))
    assert report_event(assoc, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Dataset()) == status
