"""Payloads and packed originals that were changed and sealed anew: whatever they say, only PayloadError comes of it.

The checksum of a container tells damage, not intent. Mutations are seeded: the same ones each time.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.codec.decode import SideInformation
from node.codec.patches import cells_under, cut, encode_patches
from node.codec.points import Point, Points, encode_points
from node.codec.repairs import Repairs, encode_repairs
from storage.container import pack, unpack
from storage.errors import LatentPacsError, PayloadError
from storage.originals import unpack_original
from storage.payload import decode_base, decode_rendition
from tests.samples import breast
from tests.test_payload import GOLDEN

MUTATIONS = 600
"""For each golden object; one takes a millisecond or two."""
KINDS = {"base": decode_base, "rendition": decode_rendition}
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


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """As a worker has: what would take gigabytes fails here, instead of trying."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


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
    """Metadata with a few members gone, new or of another kind, at any depth."""
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
    repairs = Repairs.of(pixels.astype(np.float32) - 2000, cells, 10.0)
    spots = (Point(3, 4, 1, 20), Point(200, 100, 4, -255))
    return {
        "points": encode_points(Points(300, 280, spots)),
        "repairs": encode_repairs(repairs),
        "patches": encode_patches(cut(pixels, cells)),
    }


def use(data: bytes) -> None:
    """Everything that is read of an object before an upscaler works on it."""
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


@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.lpacs")), ids=lambda path: path.stem)
@pytest.mark.parametrize("what", ["meta", "section", "several"])
def test_only_payload_errors_come_of_mutations(golden: Path, what: str) -> None:
    whole = golden.read_bytes()
    kind = whole[6:7]
    sections = unpack(whole, kind)
    if kind == b"R":
        sections |= side_sections()
    use(pack(kind, sections, stored=STORED & set(sections)))
    refused = 0
    for seed in range(MUTATIONS):
        chance = random.Random(f"{golden.name} {what} {seed}")
        mutated = dict(sections)
        for _ in range(chance.randrange(1, 4) if what == "several" else 1):
            name = "meta" if what == "meta" else chance.choice(sorted(mutated))
            if name == "meta" and what != "section":
                mutated["meta"] = changed_meta(chance, sections["meta"])
            else:
                mutated[name] = changed_bytes(chance, mutated[name])
        try:
            use(pack(kind, mutated, stored=STORED & set(mutated)))
        except LatentPacsError:
            refused += 1
        except Exception as error:
            pytest.fail(f"{type(error).__name__} ({error}) with seed {seed}")
    assert refused > MUTATIONS // 10


@pytest.mark.parametrize(
    "meta", [b"[]", b"null", b"1", b"{}", b"", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1e999"]
)
@pytest.mark.parametrize("name", ["base-v1", "rendition-v1", "original-native-v1"])
def test_metadata_of_another_kind(name: str, meta: bytes) -> None:
    whole = (GOLDEN / f"{name}.lpacs").read_bytes()
    sections = {**unpack(whole, whole[6:7]), "meta": meta}
    with pytest.raises(PayloadError):
        use(pack(whole[6:7], sections, stored=set()))


@pytest.mark.parametrize("length", [2**30 + 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_section_that_announces_too_much(length: int) -> None:
    import hashlib

    whole = (GOLDEN / "base-v1.lpacs").read_bytes()
    at = 9 + 1 + whole[9] + 1  # length of the first section, behind its name and encoding
    content = whole[:at] + struct.pack("<Q", length) + whole[at + 8 : -32]
    with pytest.raises(PayloadError):
        decode_base(content + hashlib.sha256(content).digest())
