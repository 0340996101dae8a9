"""Text for people: escapes control characters and characters that reorder text, and writes counts with their nouns."""

from __future__ import annotations

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    **{ord(char): rf"\{name}" for char, name in {"\n": "n", "\r": "r", "\t": "t"}.items()},
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF)},
}
"""Escapes of C0 and C1 control characters, line and paragraph separators, and bidirectional formatting characters."""


def plain(text: str) -> str:
    """``text`` on one line, with control characters, ``_ESCAPES`` and lone surrogates written as Python escapes."""
    shown = text.translate(_ESCAPES)
    return shown.encode("utf-8", "backslashreplace").decode() if not shown.isascii() else shown


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as ``1 study`` or ``2 studies``. ``plural``: needed if the plural is irregular."""
    if number != 1:
        noun = plural or (f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s")
    return f"{number} {noun}"
