"""Decodes text with code extensions: ISO 2022 as in PS3.5 6.1.2.5 and annexes H, I and K.

pydicom decodes each piece of such text with one Python codec, which leaves the escape sequences of GB 2312 (Annex K) in
the text and allows one character set at a time. Here escape sequences designate the sets G0 (bytes below 0x80) and G1
(bytes from 0x80). A delimiter restores the initial sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_ESCAPE = 0x1B
_G0 = {
    b"(B": "ascii",
    b"(J": "ascii",
    b"$B": "iso2022_jp",
    b"$@": "iso2022_jp",
    b"$(B": "iso2022_jp",
    b"$(D": "iso2022_jp_2",
}
"""Codecs of sets for G0 by escape sequence (PS3.3 tables C.12-3 and C.12-4). JIS X 0201 (ESC ( J) is decoded as ASCII,
because its yen sign is the delimiter of values."""
_G1 = {
    b"-A": "latin_1",
    b"-B": "iso8859_2",
    b"-C": "iso8859_3",
    b"-D": "iso8859_4",
    b"-F": "iso8859_7",
    b"-G": "iso8859_6",
    b"-H": "iso8859_8",
    b"-L": "iso8859_5",
    b"-M": "iso8859_9",
    b"-T": "tis_620",
    b"-b": "iso8859_15",
    b")I": "shift_jis",
    b"$)A": "gb2312",
    b"$)C": "euc_kr",
}
"""Codecs of sets for G1 by escape sequence (PS3.3 tables C.12-3 and C.12-4)."""
_DOUBLE_G1 = {"gb2312", "euc_kr"}
"""Codecs for G1 of two bytes per character."""
_PREFIX = {"iso2022_jp": b"\x1b$B", "iso2022_jp_2": b"\x1b$(D"}
"""The escape sequence that a codec for G0 needs before each character."""
_INITIAL_G1 = {
    "iso_ir_126": "iso8859_7",
    "iso_ir_127": "iso8859_6",
    "iso_ir_138": "iso8859_8",
    "iso_ir_144": "iso8859_5",
    "iso_ir_148": "iso8859_9",
    "iso_ir_166": "tis_620",
    "iso_ir_58": "gb2312",
} | {codec: codec for codec in ("latin_1", "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_15", "shift_jis", "euc_kr")}
"""The initial G1, by pydicom's codec of the first value of Specific Character Set."""
_CONTROLS = frozenset(b"\t\n\f\r")


def decoded(value: bytes, codecs: Sequence[str], delimiters: bytes) -> str:
    """Decode text. ``codecs``: pydicom's codecs of the values of Specific Character Set. Raises UnicodeError.

    ``delimiters``: bytes that restore the initial sets, besides line breaks, tabs and form feeds. If the initial sets
    have no G1, the last designated G1 stays, because many senders do not repeat its escape sequence.
    """
    return _Reader(value, codecs, delimiters).text()


class _Reader:
    def __init__(self, value: bytes, codecs: Sequence[str], delimiters: bytes) -> None:
        self._value, self._delimiters = value, frozenset(delimiters) | _CONTROLS
        self._initial = _INITIAL_G1.get(codecs[0], "")
        self._g0, self._g1 = "ascii", self._initial or next(filter(None, map(_INITIAL_G1.get, codecs)), "")

    def text(self) -> str:
        parts, at = [], 0
        while at < len(self._value):
            byte = self._value[at]
            if byte == _ESCAPE:
                at = self._designate(at + 1)
                continue
            if byte in _CONTROLS or (byte in self._delimiters and self._g0 == "ascii"):
                self._g0, self._g1 = "ascii", self._initial or self._g1
            decode: Callable[[bytes], str] = self._high if byte >= 0x80 else self._low
            double = self._g1 in _DOUBLE_G1 if byte >= 0x80 else self._g0 != "ascii" and byte > 0x20
            character = self._value[at : at + 1 + double]
            parts.append(decode(character))
            at += len(character)
        return "".join(parts)

    def _designate(self, at: int) -> int:
        for length in (3, 2):
            sequence = self._value[at : at + length]
            if sequence in _G0:
                self._g0 = _G0[sequence]
                return at + length
            if sequence in _G1:
                self._g1 = _G1[sequence]
                return at + length
        raise UnicodeError(f"unknown escape sequence at byte {at - 1}")

    def _low(self, character: bytes) -> str:
        if len(character) == 1:
            return character.decode("ascii")
        return (_PREFIX[self._g0] + character).decode(self._g0)

    def _high(self, character: bytes) -> str:
        if not self._g1:
            raise UnicodeError("no character set is designated for bytes from 0x80")
        return character.decode(self._g1)
