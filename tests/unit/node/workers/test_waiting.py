"""Proves that node/workers/waiting.py returns results, raises errors, can be cancelled, and renews a lease."""

from __future__ import annotations

import itertools
from concurrent.futures import Future

import pytest

from node.workers.waiting import wait_for_result
from storage.errors import Cancelled


def test_a_result_is_returned() -> None:
    future: Future[int] = Future()
    future.set_result(7)
    assert wait_for_result(future, lambda: False) == 7


def test_an_error_of_the_work_is_raised_even_if_it_is_a_timeout() -> None:
    future: Future[int] = Future()
    future.set_exception(TimeoutError("of the work"))
    with pytest.raises(TimeoutError, match="of the work"):
        wait_for_result(future, lambda: False)


def test_a_cancelled_wait_cancels_the_future() -> None:
    future: Future[int] = Future()
    checks = itertools.count()
    with pytest.raises(Cancelled):
        wait_for_result(future, lambda: next(checks) == 1)
    assert future.cancelled()


def test_the_lease_is_renewed_until_the_result_is_there() -> None:
    future: Future[int] = Future()
    renewals: list[int] = []

    def renew() -> None:
        renewals.append(len(renewals))
        if len(renewals) == 2:
            future.set_result(7)

    assert wait_for_result(future, lambda: False, renew=renew, every=0.0) == 7
    assert renewals == [0, 1]


def test_a_lease_that_is_not_due_is_not_renewed() -> None:
    future: Future[int] = Future()
    checks = itertools.count()
    with pytest.raises(Cancelled):
        wait_for_result(future, lambda: next(checks) == 2, renew=lambda: pytest.fail("renewed too early"), every=60.0)
