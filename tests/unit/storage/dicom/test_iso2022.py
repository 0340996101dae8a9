"""Proves text with code extensions (PS3.5 6.1.2.5) on the examples of annexes H, I and K, and on real variants."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag

from storage.dicom.elements import codecs_of, values_of

NAME, TEXT = Tag(0x00100010), Tag(0x00104000)


def read(terms: bytes, value: bytes, tag: BaseTag = NAME, vr: str = "PN") -> str:
    """Decode a value as queries and amendments do."""
    dataset = Dataset()
    charset = Tag(0x00080005)
    dataset[charset] = RawDataElement(charset, "CS", len(terms), terms, 0, False, True)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return "\\".join(values_of(dataset, tag, vr, codecs_of(dataset)))


@pytest.mark.parametrize(
    ("terms", "value", "wanted"),
    [
        # H.3.1
        (
            b"\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        # H.3.2
        (
            b"ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        ),
        # I.2
        (
            b"\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        # K.2, and without the escape sequence after the caret, and with one set at the end of the alphabetic group
        (
            b"\\ISO 2022 IR 58",
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab= ",
            "Zhang^XiaoDong=张^小东=",
        ),
        (b"\\ISO 2022 IR 58", b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\xd0\xa1\xb6\xab", "Zhang^XiaoDong=张^小东"),
        (b"ISO 2022 IR 6\\ISO 2022 IR 58", b"Wang=\x1b$)A\xcd\xf5\x1b(B^X", "Wang=王^X"),
        # JIS X 0212
        (b"\\ISO 2022 IR 87\\ISO 2022 IR 159", b"A=\x1b$(D\x30\x21\x1b(B^\x1b$B;3\x1b(B", "A=丂^山"),
        # single-byte sets: Latin 1 and then Cyrillic, Greek, Hebrew, Arabic, Thai, Latin 2, Latin 5, Latin 9
        (b"ISO 2022 IR 100\\ISO 2022 IR 144", b"M\xfcller=\x1b-L\xb8\xd2\xd0\xdd^M\xfc", "Müller=Иван^Mü"),
        (b"ISO 2022 IR 6\\ISO 2022 IR 126", b"D=\x1b-F\xc4\xe9", "D=Δι"),
        (b"\\ISO 2022 IR 138", b"S=\x1b-H\xf9\xec", "S=של"),
        (b"\\ISO 2022 IR 127", b"Q=\x1b-G\xe2\xc8", "Q=قب"),
        (b"\\ISO 2022 IR 166", b"P=\x1b-T\xcb\xd2", "P=หา"),
        (b"\\ISO 2022 IR 101", b"L=\x1b-B\xa3\xf3", "L=Łó"),
        (b"\\ISO 2022 IR 148", b"T=\x1b-M\xfd\xfe", "T=ış"),
        (b"\\ISO 2022 IR 203", b"E=\x1b-b\xa4", "E=€"),
        (b"ISO 2022 IR 203\\ISO 2022 IR 87", b"\xa4=\x1b$B;3\x1b(B", "€=山"),
        # G1 is the initial one again after a delimiter
        (b"ISO 2022 IR 100\\ISO 2022 IR 58", b"\x1b$)A\xd5\xc5^J\xfcrgen", "张^Jürgen"),
    ],
)
def test_names(terms: bytes, value: bytes, wanted: str) -> None:
    assert read(terms, value) == wanted


@pytest.mark.parametrize(
    ("terms", "value", "wanted"),
    [
        # K.3: every line designates its sets again
        (
            b"\\ISO 2022 IR 58",
            b"1.) \x1b$)A\xb5\xda\xd2\xbb\xd0\xd0\r\n2.) \x1b$)A\xb5\xda\xb6\xfe\xd0\xd0\r\n",
            "1.) 第一行\r\n2.) 第二行",
        ),
        (b"\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe6\xb5\xbf\r\n\x1b$)C\xb1\xe6", "길동\r\n길"),
        (b"\\ISO 2022 IR 87", b"a\x1b$B;3\x1b(B\r\nb\x1b$BED\x1b(B=c^d", "a山\r\nb田=c^d"),
    ],
)
def test_texts(terms: bytes, value: bytes, wanted: str) -> None:
    assert read(terms, value, TEXT, "LT") == wanted


def test_several_values() -> None:
    value = b"\x1b$)A\xd5\xc5\\Zhang\\\x1b$)A\xd0\xa1\xb6\xab"
    assert read(b"\\ISO 2022 IR 58", value, Tag(0x00101001)) == "张\\Zhang\\小东"


def test_the_second_byte_of_a_pair_is_not_a_delimiter() -> None:
    """JIS X 0208 has pairs with 5C, 5E and 3D: 表 is 493D, 噂 313D, ソ 253D; 予 is 4D3D."""
    assert read(b"\\ISO 2022 IR 87", b"A=\x1b$BI=%=\x1b(B^\x1b$B!]\x1b(B") == "A=表ソ^−"


@pytest.mark.parametrize("value", [b"A\x1b$)Z\xd5\xc5", b"A\x1b", b"A\x1b$)A\xd5", b"A\x1b$)A\xff\xff"])
def test_invalid_text_is_decoded_in_part(value: bytes) -> None:
    assert read(b"\\ISO 2022 IR 58", value).startswith("A")
