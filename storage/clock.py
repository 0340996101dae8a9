"""What is known of the clock of a machine, which may be wrong for a time."""

from __future__ import annotations

from datetime import datetime

EARLIEST = datetime(2026, 1, 1)
"""No archive is older than this program: a time before was written while the clock was wrong."""
