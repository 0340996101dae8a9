"""Changes bytes, metadata and payload containers at random, from a seed, and has them parsed."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

import numpy as np

from benchmarks.samples import breast
from node.codec.decode import SideInformation
from node.codec.patches import cells_under, cut, encode_patches
from node.codec.points import Point, Points, encode_points
from node.codec.residuals import CodedResiduals, encode_residuals
from storage.formats.container import pack, unpack
from storage.formats.packed_original import unpack_original
from storage.formats.payload import decode_base, decode_rendition

STORED = {"pixels", "padding", "region", "curve", "noise", "repairs", "points", "patches"}
VALUES: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63, 2**70, -(2**31), 10**400),
    *(
        1e308,
        -0.5,
        float("nan"),
        float("inf"),
        None,
        "",
        "x",
        [],
        {},
        True,
        False,
        [1, 2, 3],
        "a" * 70,
        "\ud800",
        "1.2.3",
    ),
]


def changed_bytes(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at, how = chance.randrange(len(changed)), chance.randrange(6)
        if how == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            changed[at] = chance.choice([0, 255, 127, 128])
        elif how == 2:
            del changed[at : at + chance.randrange(1, 40)]
        elif how == 3:
            changed[at:at] = chance.randbytes(chance.randrange(1, 20))
        elif how == 4:
            changed[at : at + 8] = chance.choice(
                [b"\xff" * 8, struct.pack("<Q", 2**40), struct.pack(">Q", 2**33), bytes(8)]
            )
        else:
            del changed[at:]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def changed_meta(chance: random.Random, meta: bytes) -> bytes:
    """JSON metadata with a few members removed, added or replaced by other values, at any depth."""
    whole: Any = json.loads(meta)
    for _ in range(chance.choice([1, 1, 2, 3])):
        node = whole
        while True:
            key: Any = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
            if not isinstance(node[key], (dict, list)) or not node[key] or chance.random() < 0.3:
                break
            node = node[key]
        how = chance.randrange(4)
        if how == 0 and isinstance(node, dict) and len(node) > 1:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[f"new{chance.randrange(9)}"] = copy.deepcopy(chance.choice(VALUES))
        else:
            node[key] = copy.deepcopy(chance.choice(VALUES))
        if not whole:
            break
    return json.dumps(whole).encode()


def side_sections() -> dict[str, bytes]:
    """Points, repairs and patches of an image of 300 x 280 pixels."""
    pixels = breast(300, 280)
    cells = cells_under([(20, 30, 40, 50)], 300, 280)
    repairs = CodedResiduals.of(pixels.astype(np.float32) - 2000, cells, 10.0)
    spots = (Point(3, 4, 1, 20), Point(200, 100, 4, -255))
    return {
        "points": encode_points(Points(300, 280, spots)),
        "repairs": encode_residuals(repairs),
        "patches": encode_patches(cut(pixels, cells)),
    }


def use(data: bytes) -> None:
    """Parse all parts of an object that are read before upscaling."""
    kind = data[6:7]
    if kind == b"B":
        base = decode_base(data)
        base.samples()
        base.padding_content()
        base.header.dataset()
    elif kind == b"R":
        side = SideInformation.of(decode_rendition(data))
        for part in (side.points, side.repairs):
            if part is not None and part.rows * part.columns < 10**7:
                part.field()
    else:
        for _ in unpack_original(data):
            pass


def opened_container(whole: bytes) -> dict[str, bytes]:
    """The sections of a container. A rendition gets side information, so that this can be changed too."""
    sections = unpack(whole, whole[6:7])
    return sections | side_sections() if whole[6:7] == b"R" else sections


def changed_container(chance: random.Random, kind: bytes, sections: dict[str, bytes], what: str) -> bytes:
    """A container with ``what`` changed (meta, section or several) and a valid checksum."""
    mutated = dict(sections)
    for _ in range(chance.randrange(1, 4) if what == "several" else 1):
        name = "meta" if what == "meta" else chance.choice(sorted(mutated))
        if name == "meta" and what != "section":
            mutated["meta"] = changed_meta(chance, sections["meta"])
        else:
            mutated[name] = changed_bytes(chance, mutated[name])
    return pack(kind, mutated, stored=STORED & set(mutated))
