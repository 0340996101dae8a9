"""Finds the byte offsets of elements in an encoded data set (PS3.5 7.1, A.4), without interpreting values.

The archive keeps a peer's data set verbatim, so it needs byte offsets, and it must detect a data set that ends inside
an element, which pydicom accepts. ``normalised`` rewrites elements that pydicom would misread.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from itertools import islice

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from storage.errors import Unparseable

_IDENTITY = {
    (0x0008, 0x0016): "SOPClassUID",
    (0x0008, 0x0018): "SOPInstanceUID",
    (0x0020, 0x000D): "StudyInstanceUID",
    (0x0020, 0x000E): "SeriesInstanceUID",
}
"""The elements that name an instance, its class, study and series."""
PIXEL_TAGS = {(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)}
_LONG_VRS = {str(vr).encode("ascii") for vr in EXPLICIT_VR_LENGTH_32}
_VRS = {str(vr).encode("ascii") for vr in STANDARD_VR}
UNDEFINED = 0xFFFFFFFF
"""Length of a sequence, an item or encapsulated pixels that end with a delimiter (PS3.5 7.5)."""
_CHARACTER_SET = (0x0008, 0x0005)
_UID_BYTES = 128
"""Maximum bytes of a UID that are compared: twice the maximum that PS3.5 9.1 allows."""
_MOST_ELEMENTS = 50_000
"""Maximum number of top-level elements of a data set: ten times as many as PS3.6 has. Each takes 20 microseconds and
0.7 KB of memory in the node's own process. Chosen, not measured."""
_MAX_DEPTH = 64
"""Maximum depth of nested sequences. Chosen, not measured."""
_SEQUENCE_BYTES, _SEQUENCE_ITEMS = 1 << 21, 20_000
"""Maximum bytes and items, over all sequences of a data set, that ``kept_ranges`` keeps. pydicom needs 40 microseconds
and a kilobyte of memory for an empty item of 8 bytes. Chosen, not measured."""
_CHUNK = 1 << 20
"""Bytes that are compared with zero at a time."""

Bytes = bytes | memoryview | mmap.mmap


@dataclass(frozen=True)
class Layout:
    """Byte offsets in an encoded data set. Without pixel data, all pixel offsets equal ``end``."""

    end: int
    pixel_start: int
    """Offset of the pixel data element's tag."""
    value_start: int
    value_end: int
    pixel_end: int
    """Offset after the element, including the sequence delimiter of encapsulated pixel data."""
    pixel_vr: str
    """``OB``, ``OW`` and so on; empty in implicit VR or without pixel data."""
    encapsulated: bool
    truncated: bool
    """Whether the pixel data element is longer than the remaining bytes."""
    repeated: bool = False
    """Whether another pixel data element follows."""
    ambiguous: tuple[str, ...] = ()
    """UIDs of the instance that occur more than once, with different values."""

    @property
    def has_pixels(self) -> bool:
        return self.pixel_start < self.end


def scan(data: Bytes, syntax: UID) -> Layout:
    """The layout of an encoded data set. Raises Unparseable; truncated pixel data is not an error."""
    walk = _walk(data, syntax)
    position, end, elements = 0, walk.end, 0
    named: dict[tuple[int, int], set[bytes]] = {}
    layout = Layout(end, end, end, end, end, "", False, False)
    while not walk.is_at_end(position):
        elements += 1
        if elements > _MOST_ELEMENTS:
            raise Unparseable(f"more than {_MOST_ELEMENTS} elements")
        tag, vr, value, length = walk.element(position)
        if tag in PIXEL_TAGS and not layout.has_pixels:
            layout = walk.pixels(position, vr, value, length)
            position = layout.pixel_end
        else:
            if tag in PIXEL_TAGS:
                layout = replace(layout, repeated=True)
            position = walk.skip(tag, vr, value, length, 0)
            if tag in _IDENTITY:
                named.setdefault(tag, set()).add(bytes(data[value : min(position, value + _UID_BYTES)]).strip(b"\0 "))
    return replace(layout, ambiguous=tuple(_IDENTITY[tag] for tag, values in named.items() if len(values) > 1))


def kept_ranges(data: Bytes, syntax: UID, layout: Layout, limit: int) -> list[tuple[int, int]]:
    """Byte ranges of the top-level elements, except pixel data and values above ``limit`` bytes.

    A sequence is kept if it has, together with those kept before it, at most ``_SEQUENCE_BYTES`` and
    ``_SEQUENCE_ITEMS``. A sequence of VR UN must also have at most ``limit`` bytes.
    """
    walk = _walk(data, syntax)
    kept: list[tuple[int, int]] = []
    bytes_left, items_left = _SEQUENCE_BYTES, _SEQUENCE_ITEMS
    for start, end in ((0, layout.pixel_start), (layout.pixel_end, layout.end)):
        at = since = start
        while at < end and any(data[at : at + 8]):
            tag, vr, value, length = walk.element(at)
            after = walk.skip(tag, vr, value, length, 0)
            size, sequence = after - at, walk.is_sequence(tag, vr, length)
            items = walk.most_items(at, after) if sequence and size <= bytes_left else 0
            if size > (bytes_left if sequence else limit) or items > items_left or (vr == b"UN" and size > limit):
                kept.append((since, at))
                since = after
            elif sequence:
                bytes_left, items_left = bytes_left - size, items_left - items
            at = after
        kept.append((since, end))
    return kept


def normalised(header: bytes, syntax: UID, *, deferred: bool = False) -> bytes:
    """A data set without pixels in a form that pydicom reads correctly, with the same elements.

    - Zero bytes after the last element are removed.
    - An element whose VR is not in PS3.5 gets VR UN.
    - Specific Character Set gets VR CS, and becomes empty if its value is not printable. pydicom reads it before all
      other elements, and otherwise fails.
    - In big endian, UN of undefined length gets a defined length, because its items are in implicit VR little endian
      (PS3.5 6.2.2, pydicom#1312).
    - ``deferred``: sequences of undefined length get a defined length. pydicom then leaves their items unread. An item
      of 8 bytes takes over a kilobyte of memory when it is read.
    """
    known = syntax.is_transfer_syntax  # an unknown one is read as explicit little endian
    explicit = not (known and syntax.is_implicit_VR) and not looks_implicit(header)
    try:
        walk = _Normaliser(header, explicit=explicit, little=not known or syntax.is_little_endian)
        return walk.data_set(deferred=deferred)
    except Unparseable:
        return header  # pydicom reports the error


def check_order(data: Bytes, syntax: UID) -> None:
    """Raises Unparseable if tags do not ascend or occur twice (PS3.5 7.1) in the data set or in an item.

    Also raises it if ``normalised`` would change a VR.
    """
    walk = _walk(data, syntax)
    walk.check_order(0, len(data), 0)
    if walk.replacements:
        raise Unparseable(f"no value representation at byte {min(walk.replacements)}")


def looks_implicit(data: Bytes) -> bool:
    """Whether the data set starts in implicit VR. Some senders do so in explicit syntaxes, and pydicom reads it."""
    return len(data) >= 6 and not bytes(data[4:6]).isalpha()


def _walk(data: Bytes, syntax: UID) -> _Walk:
    explicit = not syntax.is_implicit_VR and not looks_implicit(data)
    return _Walk(data, explicit=explicit, little=syntax.is_little_endian)


class _Walk:
    def __init__(self, data: Bytes, *, explicit: bool, little: bool) -> None:
        self.data, self.explicit, self.end = data, explicit, len(data)
        self.order = "<" if little else ">"
        self.replacements: dict[int, tuple[int, bytes]] = {}
        """By start offset: the end offset of the bytes to replace, and their replacement (see ``normalised``)."""

    def is_at_end(self, at: int) -> bool:
        """Whether only zero bytes follow, with which some senders pad."""
        if at >= self.end:
            return True
        if any(self.data[at : at + 8]):
            return False
        starts = range(at, self.end, _CHUNK)
        return not any(bytes(self.data[start : start + _CHUNK]).strip(b"\0") for start in starts)

    def element(self, at: int) -> tuple[tuple[int, int], bytes, int, int]:
        """Tag, VR, offset of the value and length of the element at ``at``."""
        if at + 8 > self.end:
            raise Unparseable(f"data set ends inside an element header at byte {at}")
        tag = struct.unpack_from(self.order + "HH", self.data, at)
        if not self.explicit or tag[0] == 0xFFFE:
            return tag, b"", at + 8, struct.unpack_from(self.order + "I", self.data, at + 4)[0]
        vr = bytes(self.data[at + 4 : at + 6])
        if vr in _LONG_VRS:
            if at + 12 > self.end:
                raise Unparseable(f"data set ends inside an element header at byte {at}")
            return tag, vr, at + 12, struct.unpack_from(self.order + "I", self.data, at + 8)[0]
        if vr not in _VRS:
            return self._unknown_vr(at, tag, vr)
        return tag, vr, at + 8, struct.unpack_from(self.order + "H", self.data, at + 6)[0]

    def _unknown_vr(self, at: int, tag: tuple[int, int], vr: bytes) -> tuple[tuple[int, int], bytes, int, int]:
        """An element whose VR is not in PS3.5, read in the first of three ways after which another element may follow.

        Its length may have 16 bits, as toolkits write unknown VRs, or 32 bits, as every new VR has, or there is no VR.
        """
        short, reserved = struct.unpack_from(self.order + "H", self.data, at + 6)[0], self.data[at + 6 : at + 8]
        if self._may_end(tag, vr, at + 8 + short):
            self.replacements[at + 4] = at + 8, struct.pack(self.order + "2s2xI", b"UN", short)
            return tag, b"UN", at + 8, short
        if at + 12 <= self.end and not any(reserved):
            long = struct.unpack_from(self.order + "I", self.data, at + 8)[0]
            if self._may_end(tag, vr, at + 12 + long):
                self.replacements[at + 4] = at + 6, b"UN"
                return tag, b"UN", at + 12, long
        if vr.isalpha() and vr.isupper():
            return tag, vr, at + 8, short
        implicit = struct.unpack_from(self.order + "I", self.data, at + 4)[0]
        if self._may_end(tag, vr, at + 8 + implicit):  # pydicom reads this too
            return tag, b"", at + 8, implicit
        raise Unparseable(f"no value representation at byte {at + 4}: {vr!r}")

    def _may_end(self, tag: tuple[int, int], vr: bytes, at: int) -> bool:
        """Whether an element may end at ``at``: at the end, before a delimiter, or before a higher tag with a VR."""
        if at >= self.end:
            return at == self.end
        if at + 8 > self.end:
            return self.is_at_end(at)
        following = struct.unpack_from(self.order + "HH", self.data, at)
        if following[0] == 0xFFFE or self.is_at_end(at):
            return True
        return following > tag and bytes(self.data[at + 4 : at + 6]) in (*_VRS, vr)

    def skip(self, tag: tuple[int, int], vr: bytes, value: int, length: int, depth: int) -> int:
        """The offset after the element. Walks its items only if its length is undefined."""
        if length != UNDEFINED:
            if value + length > self.end:
                raise Unparseable(
                    f"data set ends inside ({tag[0]:04X},{tag[1]:04X}): length {length}, {self.end - value} bytes left"
                )
            return value + length
        if depth > _MAX_DEPTH:
            raise Unparseable(f"sequences nested more than {_MAX_DEPTH} deep")
        # PS3.5 6.2.2 note: UN of undefined length holds an implicit VR little endian sequence
        inner = _Walk(self.data, explicit=False, little=True) if vr == b"UN" else self
        return inner.items(value, depth)

    def items(self, at: int, depth: int) -> int:
        while True:
            tag, _, value, length = self.element(at)
            if tag == (0xFFFE, 0xE0DD):
                return value
            if tag != (0xFFFE, 0xE000):
                raise Unparseable(f"no sequence item at byte {at}")
            if length == UNDEFINED:
                at = self._end_of_item(value, depth + 1)
            else:
                at = self.skip(tag, b"", value, length, depth)

    def check_order(self, at: int, end: int, depth: int) -> None:
        last = (-1, -1)
        while at < end:
            tag, vr, value, length = self.element(at)
            if tag == (0xFFFE, 0xE00D):
                return
            if tag <= last:
                raise Unparseable(f"({tag[0]:04X},{tag[1]:04X}) follows ({last[0]:04X},{last[1]:04X})")
            last, encapsulated = tag, tag in PIXEL_TAGS and length == UNDEFINED
            at = self.pixels(at, vr, value, length).pixel_end if encapsulated else self.skip(tag, vr, value, length, 0)
            if not encapsulated and self.is_sequence(tag, vr, length):
                inner = _Walk(self.data, explicit=False, little=True) if vr == b"UN" else self
                inner.check_items(value, at, depth + 1)

    def check_items(self, at: int, end: int, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise Unparseable(f"sequences nested more than {_MAX_DEPTH} deep")
        while at < end:
            tag, _, value, length = self.element(at)
            if tag == (0xFFFE, 0xE0DD):
                return
            if tag != (0xFFFE, 0xE000):
                raise Unparseable(f"no sequence item at byte {at}")
            stop = value + length if length != UNDEFINED else self._end_of_item(value, 0)
            self.check_order(value, stop, depth)
            at = stop

    def _end_of_item(self, at: int, depth: int) -> int:
        while True:
            tag, vr, value, length = self.element(at)
            if tag == (0xFFFE, 0xE00D):
                return value
            at = self.skip(tag, vr, value, length, depth)

    def most_items(self, at: int, end: int) -> int:
        """The number of items at any depth between two offsets, or more, since values may hold the same bytes."""
        content = bytes(self.data[at:end])
        # items of VR UN are in little endian
        return sum(content.count(struct.pack(order + "HH", 0xFFFE, 0xE000)) for order in "<>")

    def is_sequence(self, tag: tuple[int, int], vr: bytes, length: int) -> bool:
        if length == UNDEFINED or vr == b"SQ":
            return True
        number = tag[0] << 16 | tag[1]
        return not self.explicit and dictionary_has_tag(number) and dictionary_VR(number) == "SQ"

    def pixels(self, at: int, vr: bytes, value: int, length: int) -> Layout:
        name = vr.decode("ascii")
        if length != UNDEFINED:
            stop = min(value + length, self.end)
            return Layout(self.end, at, value, stop, stop, name, False, value + length > self.end)
        position = value
        while position + 8 <= self.end:
            tag, _, inner, size = self.element(position)
            if tag == (0xFFFE, 0xE0DD):
                return Layout(self.end, at, value, position, inner, name, True, False)
            if tag != (0xFFFE, 0xE000) or inner + size > self.end:
                break
            position = inner + size
        return Layout(self.end, at, value, self.end, self.end, name, True, True)


class _Normaliser(_Walk):
    """Walks all items at any depth, and applies the replacements."""

    def __init__(self, data: bytes, *, explicit: bool, little: bool, depth: int = 0) -> None:
        super().__init__(data, explicit=explicit, little=little)
        self.depth = depth

    def data_set(self, *, deferred: bool = False) -> bytes:
        at = 0
        while not self.is_at_end(at):
            tag, vr, value, length = self.element(at)
            known = len(self.replacements)
            at = self.skip(tag, vr, value, length, 0)
            if deferred and length == UNDEFINED and vr != b"UN" and tag != _CHARACTER_SET:
                self._define_length(value, at, len(self.replacements) - known)
        return self._replaced(at)

    def _define_length(self, value: int, end: int, inside: int) -> None:
        """Give a sequence a defined length. ``inside``: how many of the latest replacements lie within the sequence."""
        grown = sum(
            len(new) - (stop - start) for start, (stop, new) in islice(reversed(self.replacements.items()), inside)
        )
        self.replacements[value - 4] = value, struct.pack(self.order + "I", end - 8 - value + grown)
        self.replacements[end - 8] = end, b""

    def sequence(self) -> bytes:
        """The items of a sequence of defined length."""
        at = 0
        while at < self.end:
            tag, vr, value, length = self.element(at)
            if tag != (0xFFFE, 0xE000):
                raise Unparseable(f"no sequence item at byte {at}")
            at = self._end_of_item(value, 0) if length == UNDEFINED else self.skip(tag, vr, value, length, 0)
        return self._replaced(at)

    def skip(self, tag: tuple[int, int], vr: bytes, value: int, length: int, depth: int) -> int:
        end = super().skip(tag, vr, value, length, depth)
        if tag == _CHARACTER_SET:
            self._correct_character_set(vr, value, end)
        elif length == UNDEFINED:
            if vr == b"UN" and self.order == ">":
                self.replacements[value - 4] = value, struct.pack(">I", end - 8 - value)
                self.replacements[end - 8] = end, b""
        elif self.depth < _MAX_DEPTH and (tag == (0xFFFE, 0xE000) or self.is_sequence(tag, vr, length)):
            self._descend(value, end, is_sequence=tag != (0xFFFE, 0xE000))
        return end

    def _correct_character_set(self, vr: bytes, value: int, end: int) -> None:
        received = bytes(self.data[value:end])
        text = received.rstrip(b"\0 ")
        if not (text.isascii() and text.decode("ascii").isprintable()):
            text = b""
        text += b" " * (len(text) % 2)
        if text == received and vr in (b"CS", b""):
            return
        for start in [start for start in self.replacements if value <= start < end]:
            del self.replacements[start]
        tag = struct.pack(self.order + "HH", *_CHARACTER_SET)
        at = value - 8 if self.data[value - 8 : value - 4] == tag else value - 12
        head = struct.pack(self.order + "2sH", b"CS", len(text)) if vr else struct.pack(self.order + "I", len(text))
        self.replacements[at + 4] = end, head + text

    def _descend(self, value: int, end: int, *, is_sequence: bool) -> None:
        content = bytes(self.data[value:end])
        inner = _Normaliser(content, explicit=self.explicit, little=self.order == "<", depth=self.depth + 1)
        try:
            replacement = inner.sequence() if is_sequence else inner.data_set()
        except Unparseable:
            return
        if replacement != content:
            length = struct.pack(self.order + "I", len(replacement))
            self.replacements[value - 4] = end, length + replacement

    def _replaced(self, end: int) -> bytes:
        if not self.replacements:
            return bytes(self.data[:end])
        parts, at = [], 0
        for start, (stop, replacement) in sorted(self.replacements.items()):
            parts += [self.data[at:start], replacement]
            at = stop
        return b"".join([*parts, self.data[at:end]])
