"""Proves that payloads and packed originals that were changed and sealed again raise PayloadError only.

The checksum of a container detects damage, and not an attack. Mutations are seeded, so that they are always the same.
"""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.mutants import STORED, changed_container, opened_container, use
from storage.errors import LatentPacsError, PayloadError
from storage.formats.container import pack, unpack
from storage.formats.payload import decode_base
from tests.support.paths import GOLDEN

MUTATIONS = 600
"""Mutations of each golden object; one takes 1 to 2 ms."""


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """The memory limit of a worker, so that allocating gigabytes fails at once."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.slow
@pytest.mark.parametrize("golden", sorted(GOLDEN.glob("*.lpacs")), ids=lambda path: path.stem)
@pytest.mark.parametrize("what", ["meta", "section", "several"])
def test_only_payload_errors_come_of_mutations(golden: Path, what: str) -> None:
    whole = golden.read_bytes()
    kind = whole[6:7]
    sections = opened_container(whole)
    use(pack(kind, sections, stored=STORED & set(sections)))
    refused = 0
    for seed in range(MUTATIONS):
        chance = random.Random(f"{golden.name} {what} {seed}")
        try:
            use(changed_container(chance, kind, sections, what))
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
def test_a_section_with_an_excessive_length(length: int) -> None:
    import hashlib

    whole = (GOLDEN / "base-v1.lpacs").read_bytes()
    at = 9 + 1 + whole[9] + 1  # length of the first section, after its name and encoding
    content = whole[:at] + struct.pack("<Q", length) + whole[at + 8 : -32]
    with pytest.raises(PayloadError):
        decode_base(content + hashlib.sha256(content).digest())
