"""Text from outside made harmless for a line of text: what would end the line or steer a terminal is written out."""

from __future__ import annotations

_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    **{ord(char): rf"\{name}" for char, name in {"\n": "n", "\r": "r", "\t": "t"}.items()},
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)},
}
"""C0 and C1 control characters, line and paragraph separators, and what turns the direction of text."""


def plain(text: str) -> str:
    """``text`` on one line, without control characters: these are written as Python writes them."""
    shown = text.translate(_SHOWN)
    return shown.encode("utf-8", "backslashreplace").decode() if not shown.isascii() else shown
