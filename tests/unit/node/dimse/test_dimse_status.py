"""Proves that the log of the DICOM server does not quote what a peer or a library says about a data set."""

from __future__ import annotations

import pytest

from node.dimse.dimse_status import for_log
from storage.errors import ObjectMissing, Unparseable


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
