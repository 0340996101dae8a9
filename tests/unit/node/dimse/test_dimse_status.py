"""Proves which statuses errors have, and that the log does not quote a peer or a library about a data set."""

from __future__ import annotations

import errno
import os

import pytest

from node.archive.query.identifier import IdentifierError
from node.dimse.dimse_status import QUERY_ERRORS, STORE_ERRORS, for_log, is_warning, of_error, reason_text, response
from storage.errors import IndexFault, NoWorker, ObjectMissing, StoreFull, Unparseable


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


CANNOT_WRITE = "the archive cannot write at present"
NOTHING_LEFT = "the archive has no memory, process or file left at present"


def full(number: int) -> StoreFull:
    """What the store raises after an error of the system."""
    error = StoreFull("no room for the object /data/objects/ab")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (StoreFull("3 bytes free below /data"), 0xA700, "not enough space in the archive"),
        (full(errno.ENOSPC), 0xA700, "not enough space in the archive"),
        (full(errno.EROFS), 0xA700, CANNOT_WRITE),
        (OSError(errno.EIO, "Input/output error"), 0xA700, CANNOT_WRITE),
        (OSError(errno.EMFILE, "Too many open files"), 0xA700, NOTHING_LEFT),
        (NoWorker("no worker process can start"), 0xA700, NOTHING_LEFT),
        (Unparseable("cut in /data/spool/x, see 1.2.840.10008.1.2.1: it ends"), 0xC002, "cut in (a path), see it ends"),
        (ObjectMissing("object ab is not in /data/objects"), 0xC000, "object ab is not in (a path)"),
        (ValueError("PatientName 'ROE^JANE' is odd"), 0xC000, "internal error, see the node's log"),
    ],
)
def test_a_sender_gets_the_status_of_the_error_and_no_path(error: Exception, status: int, comment: str) -> None:
    answer = of_error(error, STORE_ERRORS)
    assert (answer.Status, answer.ErrorComment) == (status, comment)


def test_a_query_that_meets_a_failing_disk_may_be_tried_again() -> None:
    assert of_error(OSError(errno.EIO, "Input/output error"), QUERY_ERRORS).Status == 0xA700
    assert of_error(IdentifierError("no level"), QUERY_ERRORS).Status == 0xA900


def test_a_comment_is_one_line_of_64_characters() -> None:
    assert "ErrorComment" not in response(0)
    assert response(0xC000, "a\nb\\c" + "d" * 70).ErrorComment == "a b/c" + "d" * 59


def test_the_reason_of_a_refusal_quotes_nothing_of_the_data_set() -> None:
    """It is kept in the audit trail for ever."""
    jane = "PatientName 'ROE^JANE' is odd"
    assert reason_text(Unparseable(jane), STORE_ERRORS) == STORE_ERRORS[Unparseable].means
    assert reason_text(ValueError(jane), STORE_ERRORS) == "internal error, ValueError"
    assert reason_text(StoreFull("3 bytes free"), STORE_ERRORS) == "3 bytes free"
    assert reason_text(ObjectMissing("object ab"), STORE_ERRORS) == "object ab"
    assert reason_text(OSError(errno.EIO, "failing"), STORE_ERRORS) == f"[Errno {errno.EIO}] failing"


def test_warnings_are_no_failures() -> None:
    """PS3.7 C.4.2 and annex C: B000 to BFFF, 0001, 0107 and 0116."""
    warnings = [*range(0xB000, 0xC000), 0x0001, 0x0107, 0x0116]
    assert [status for status in range(0x10000) if is_warning(status)] == sorted(warnings)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_machine_without_memory_or_threads_asks_a_sender_to_try_again(error: Exception) -> None:
    assert of_error(error, STORE_ERRORS).Status == 0xA700


def test_another_unforeseen_error_is_a_failure() -> None:
    assert of_error(RuntimeError("dictionary changed size"), STORE_ERRORS).Status == 0xC000
