"""Formats figures for people."""

from __future__ import annotations


def size_text(size: int) -> str:
    """A size in bytes with a decimal unit, for example ``1.2 MB``."""
    value, units = float(size), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
