"""The earliest credible time, for times that may come from a clock that was wrong."""

from __future__ import annotations

from datetime import datetime

EARLIEST = datetime(2026, 1, 1)
"""UTC, without a zone. No archive is older than this program, so an earlier time comes from a wrong clock."""
