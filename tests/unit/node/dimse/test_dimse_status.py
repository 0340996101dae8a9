"""Proves which statuses errors have, and that the log does not quote what a peer or a library says of a data set."""

from __future__ import annotations

import pytest

from node.dimse.dimse_status import QUERY_ERRORS, STORE_ERRORS, for_log, of_error
from storage.errors import IndexFault, ObjectMissing, Unparseable


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ObjectMissing("object ab is not there"), "object ab is not there"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (Unparseable("PatientName 'ROE^JANE' is odd"), "Unparseable"),
        (ValueError("PatientName 'ROE^JANE' is odd"), "ValueError"),
    ],
)
def test_the_log_has_no_text_that_may_quote_a_data_set(error: Exception, text: str) -> None:
    assert for_log(error) == text


def test_an_index_that_cannot_be_used_asks_a_sender_to_try_again() -> None:
    error = IndexFault("the index cannot be used (connection refused): look at the database server")
    assert of_error(error, STORE_ERRORS).Status == 0xA700
    assert of_error(error, QUERY_ERRORS).Status == 0xC000


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_machine_without_memory_or_threads_asks_a_sender_to_try_again(error: Exception) -> None:
    assert of_error(error, STORE_ERRORS).Status == 0xA700


def test_another_unforeseen_error_is_a_failure() -> None:
    assert of_error(RuntimeError("dictionary changed size"), STORE_ERRORS).Status == 0xC000
