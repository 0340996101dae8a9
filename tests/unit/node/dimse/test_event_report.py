"""Proves which response to a report of storage commitment is an answer."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_ECHO, N_EVENT_REPORT
from pynetdicom.presentation import build_context

from node.dimse.pynetdicom_patches.event_report import report_event
from node.dimse.sop_classes import STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE


@pytest.mark.parametrize("status", [0x0000, 0x0110, None])
def test_a_response_without_a_status_accepts_nothing(monkeypatch: pytest.MonkeyPatch, status: int | None) -> None:
    assoc = association(monkeypatch)
    assoc.dimse.msg_queue.put((1, response_of(status)))
    assert report_event(assoc, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Dataset()) == status


@pytest.mark.parametrize(("others", "status"), [(3, 0x0000), (4, None)])
def test_requests_before_the_response_stay_in_the_queue(
    monkeypatch: pytest.MonkeyPatch, others: int, status: int | None
) -> None:
    """After that many requests the response is no longer awaited, since a peer could send requests as long as it
    likes."""
    assoc = association(monkeypatch)
    requests = [(1, C_ECHO()) for _ in range(others)]
    for one in (*requests, (1, response_of(0x0000))):
        assoc.dimse.msg_queue.put(one)
    assert report_event(assoc, 1, STORAGE_COMMITMENT, STORAGE_COMMITMENT_INSTANCE, Dataset()) == status
    assert list(assoc.dimse.msg_queue.queue)[:others] == requests


def association(monkeypatch: pytest.MonkeyPatch) -> Any:
    assoc: Any = Association(AE("PLAIN"), "acceptor")
    agreed = build_context(STORAGE_COMMITMENT, ImplicitVRLittleEndian)
    agreed.context_id = 1
    assoc._accepted_cx = {1: agreed}
    monkeypatch.setattr(assoc.dimse, "send_msg", lambda primitive, context_id: None)
    monkeypatch.setattr(assoc.dul, "is_alive", lambda: True)
    return assoc


def response_of(status: int | None) -> N_EVENT_REPORT:
    response = N_EVENT_REPORT()
    response.MessageIDBeingRespondedTo = 1
    if status is not None:
        response.Status = status
    return response
