"""storage.payload: round trips, damage of every byte, hostile content, the golden files, and derived UIDs."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from storage import coders
from storage.coarseness import LIMIT, TILE, Coarseness
from storage.container import MAGIC, VERSIONS
from storage.dicomfile import HeaderBytes
from storage.errors import PayloadError
from storage.payload import (
    Base,
    Rendition,
    Window,
    decode_base,
    decode_rendition,
    derived_uid,
    encode_base,
    encode_rendition,
    pack_mask,
    seed_of,
    unpack_mask,
)
from storage.records import Rung, RungOutcome, Verdict
from storage.resample import OPERATOR

GOLDEN = Path(__file__).parent / "golden"
DIGEST = "0123456789abcdef" * 4

# --- strategies -----------------------------------------------------------------------------------------------

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
uids = st.from_regex(r"2\.25\.[1-9][0-9]{0,37}", fullmatch=True)
figures = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
rungs = st.builds(
    Rung,
    scale=st.sampled_from([1, 2, 4]),
    coder=st.sampled_from(sorted(coders.CODERS)),
    distance=st.floats(0, 15),
    effort=st.integers(1, 9),
    sample_bits=st.integers(0, 16),
)
verdicts = st.builds(
    Verdict,
    psnr_db=figures,
    fsim_mean=figures,
    fsim_p5=figures,
    tiles=st.integers(0, 10_000),
    figures=st.dictionaries(texts, figures, max_size=4),
    failures=st.lists(texts, max_size=3).map(tuple),
    gated=st.booleans(),
)
outcomes = st.builds(
    RungOutcome,
    rung=texts,
    payload_bytes=st.integers(0, 2**50),
    verdict=verdicts,
    seconds=figures,
    forecast=st.booleans(),
    coarseness=st.binary(max_size=20).map(bytes.hex),
)


@st.composite
def mapped(draw: st.DrawFn, plain_bases: st.SearchStrategy[Base]) -> Base:
    """Some of them with a map; those of large images would take long to draw."""
    base = draw(plain_bases)
    tiles = -(-base.rows // TILE), -(-base.columns // TILE)
    if tiles[0] * tiles[1] > 100 or not draw(st.booleans()):
        return base
    steps = draw(arrays(np.int8, tiles, elements=st.integers(-LIMIT, LIMIT)))
    return replace(base, coarseness=Coarseness(base.rows, base.columns, steps))


windows = st.none() | st.builds(Window, *[st.integers(0, 2**32 - 1)] * 5)


sizes = st.integers(1, 2000) | st.integers(1, 65535)
plain_bases = st.builds(
    Base,
    rung=rungs,
    rows=sizes,
    columns=sizes,
    bits_stored=st.integers(1, 16),
    minimum=st.integers(0, 65535),
    maximum=st.integers(0, 65535),
    padding=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    padding_value=st.integers(0, 65535),
    exponent=st.integers(-8, 16),
    quantisation_rms=figures,
    original_digest=digests,
    pixel_digest=digests,
    pixel_vr=st.sampled_from(["", "OB", "OW"]),
    header=st.builds(
        HeaderBytes,
        transfer_syntax_uid=uids,
        before=st.binary(min_size=1, max_size=300),
        after=st.binary(max_size=50),
    ),
    coded=st.binary(min_size=1, max_size=300),
    padding_mask=st.binary(max_size=50),
    operator_name=texts,
)
bases = mapped(plain_bases)
renditions = st.builds(
    Rendition,
    base_digest=digests,
    original_uid=uids,
    derived_uid=uids,
    upscaler=texts,
    method=texts,
    generative=st.booleans(),
    weights_digest=digests,
    numerics=st.dictionaries(texts, texts, max_size=4),
    steps=st.integers(0, 1000),
    seed=st.integers(0, 2**31 - 1),
    output_digest=digests,
    verdict=verdicts,
    tried=st.lists(outcomes, max_size=3).map(tuple),
    postprocessing=texts,
    guide=st.binary(max_size=50),
    points=st.binary(max_size=50),
    patches=st.binary(max_size=50),
    extra=st.dictionaries(texts, texts | st.integers() | st.booleans() | st.none() | st.lists(texts), max_size=3),
)

SAMPLES = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
SMALL_BASE = Base(
    rung=Rung(2, "png16", effort=1, sample_bits=16),
    rows=6,
    columns=7,
    bits_stored=12,
    minimum=1,
    maximum=4095,
    padding=(0, 0),
    padding_value=0,
    exponent=4,
    quantisation_rms=0.25,
    original_digest=DIGEST,
    pixel_digest=DIGEST[::-1],
    pixel_vr="OW",
    header=HeaderBytes("1.2.840.10008.1.2.1", b"before", b"after"),
    coded=coders.encode(SAMPLES, Rung(2, "png16", effort=1)),
    padding_mask=pack_mask(np.eye(6, 7, dtype=np.bool_)),
)
MAPPED_BASE = replace(
    SMALL_BASE,
    rung=Rung(4, "png16", effort=1),
    rows=300,
    columns=520,
    padding_mask=b"",
    coded=coders.encode(np.full((75, 130), 1600, np.uint16), Rung(4, "png16", effort=1)),
    coarseness=Coarseness(300, 520, np.array([[0, 8, -32], [-8, 32, 1]], np.int8)),
)
SMALL_RENDITION = Rendition(
    base_digest=DIGEST,
    original_uid="1.2.3",
    derived_uid="2.25.1",
    upscaler="bicubic",
    method="m",
    generative=False,
    weights_digest="",
    numerics={"dtype": "float32"},
    steps=0,
    seed=7,
    output_digest=DIGEST,
    verdict=Verdict(40.0, 0.97, 0.95, 9, {"rmse": 1.5}),
    guide=b"guide",
)
CHANGED_BASE: dict[str, Any] = {
    **{"rung": Rung(2, "png16", effort=2, sample_bits=16), "rows": 5, "columns": 8, "bits_stored": 14, "minimum": 2},
    **{"maximum": 9, "padding": None, "padding_value": 1, "exponent": 3, "quantisation_rms": 0.5, "pixel_vr": "OB"},
    **{
        "original_digest": DIGEST[::-1],
        "pixel_digest": DIGEST,
        "coded": b"c",
        "padding_mask": b"",
        "operator_name": "",
    },
    "header": HeaderBytes("1.2.840.10008.1.2.1", b"before", b""),
    "coarseness": Coarseness(6, 7, np.zeros((1, 1), np.int8)),
    "window": Window(0, 1, 2, 3, beyond=4),
}
CHANGED_RENDITION: dict[str, Any] = {
    **{"base_digest": "", "original_uid": "1", "derived_uid": "2", "upscaler": "u", "method": "", "generative": True},
    **{"weights_digest": DIGEST, "numerics": {}, "steps": 1, "seed": 8, "output_digest": "", "postprocessing": "0"},
    **{"verdict": Verdict(40.0, 0.97, 0.95, 9), "guide": b"", "points": b"q", "patches": b"p", "extra": {"a": 1}},
    "tried": (RungOutcome("r", 1, Verdict(1.0, 1.0, 1.0, 1), 1.0),),
}


# --- round trips ----------------------------------------------------------------------------------------------


def plain(base: Base) -> dict[str, Any]:
    """Its fields, the map as values that can be compared."""
    values = {each.name: getattr(base, each.name) for each in fields(base)}
    map_ = base.coarseness
    return values | {"coarseness": map_ and (map_.rows, map_.columns, map_.steps.dtype, map_.steps.tolist())}


@settings(max_examples=100, deadline=None)
@given(base=bases, window=windows)
def test_a_base_comes_back(base: Base, window: Window | None) -> None:
    base = replace(base, window=window)
    encoded = encode_base(base)
    assert plain(decode_base(encoded)) == plain(base)
    assert encoded[7] == (3 if window is not None else 1 if base.coarseness is None else 2)


def test_beyond_a_window_is_one_grey_level_whatever_map_and_exponent() -> None:
    """x4, 75 x 130 samples of which 40 x 70 are coded."""
    coded = np.random.default_rng(1).integers(0, 60000, (40, 70)).astype(np.uint16)
    rung = Rung(4, "png16", effort=1)
    whole = replace(MAPPED_BASE, coded=coders.encode(np.pad(coded, ((20, 15), (60, 0))), rung))
    base = replace(whole, coded=coders.encode(coded, rung), window=Window(20, 60, 40, 70, beyond=1234))
    samples = decode_base(encode_base(base)).samples()
    assert samples.shape == (75, 130)
    assert np.array_equal(samples[20:60, 60:], whole.samples()[20:60, 60:])
    samples[20:60, 60:] = 1234
    assert (samples == 1234).all()


@pytest.mark.parametrize("window", [(0, 0, 76, 130), (1, 0, 75, 130), (0, 100, 75, 31), (0, 0, 0, 9), (5, 5, 9, 0)])
def test_a_window_beyond_the_samples_is_a_payload_error(window: tuple[int, int, int, int]) -> None:
    base = decode_base(encode_base(replace(MAPPED_BASE, window=Window(*window, beyond=0))))
    with pytest.raises(PayloadError, match="window"):
        base.samples()


def test_a_window_of_another_length_is_a_payload_error() -> None:
    for size in (19, 21):
        data = container(section(b"meta", META), HEADER, PIXELS, section(b"window", bytes(size)), version=3)
        with pytest.raises(PayloadError, match="malformed"):
            decode_base(data)


@settings(max_examples=100, deadline=None)
@given(rendition=renditions)
def test_a_rendition_comes_back(rendition: Rendition) -> None:
    decoded = decode_rendition(encode_rendition(rendition))
    assert decoded == rendition
    assert isinstance(decoded.tried, tuple)
    assert isinstance(decoded.verdict.failures, tuple)


@pytest.mark.parametrize("name", [each.name for each in fields(Base)])
def test_every_field_of_a_base_is_in_its_bytes(name: str) -> None:
    assert encode_base(replace(SMALL_BASE, **{name: CHANGED_BASE[name]})) != encode_base(SMALL_BASE)
    assert encode_base(replace(SMALL_BASE)) == encode_base(SMALL_BASE)


@pytest.mark.parametrize("name", [each.name for each in fields(Rendition)])
def test_every_field_of_a_rendition_is_in_its_bytes(name: str) -> None:
    assert encode_rendition(replace(SMALL_RENDITION, **{name: CHANGED_RENDITION[name]})) != encode_rendition(
        SMALL_RENDITION
    )
    assert encode_rendition(replace(SMALL_RENDITION)) == encode_rendition(SMALL_RENDITION)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_figure_that_json_does_not_have_is_refused_when_it_is_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode_base(replace(SMALL_BASE, quantisation_rms=value))


def test_samples_are_decoded_in_grey_levels() -> None:
    samples = SMALL_BASE.samples()
    assert samples.dtype == np.float32
    assert np.array_equal(samples, SAMPLES / 16)
    assert np.array_equal(replace(SMALL_BASE, exponent=-2).samples(), SAMPLES * 4.0)


def test_samples_are_divided_by_the_map() -> None:
    map_ = MAPPED_BASE.coarseness
    assert map_ is not None
    samples = MAPPED_BASE.samples()
    assert samples.dtype == np.float32
    assert np.array_equal(samples, np.float32(100) / map_.scaling(4))
    assert samples[0, 0] == 100  # of the corner, whose step is 0
    assert samples[0, 95] == pytest.approx(200, rel=0.01)  # half a sample from the centre of a tile whose step is 8


def test_samples_of_another_operator_or_shape_are_refused() -> None:
    with pytest.raises(PayloadError, match="made by operator lanczos/9; this release has torchvision"):
        replace(SMALL_BASE, operator_name="lanczos/9").samples()
    with pytest.raises(PayloadError, match=r"not uint16 \(4, 4\)"):
        replace(SMALL_BASE, rows=7).samples()


def test_padding_pixels_are_those_of_the_mask() -> None:
    padding = SMALL_BASE.padding_pixels()
    assert padding is not None
    assert np.array_equal(padding, np.eye(6, 7, dtype=np.bool_))
    assert replace(SMALL_BASE, padding_mask=b"").padding_pixels() is None


# --- damage ---------------------------------------------------------------------------------------------------

SMALL = [
    pytest.param(encode_base(SMALL_BASE), decode_base, id="base"),
    pytest.param(encode_base(MAPPED_BASE), decode_base, id="base with a map"),
    pytest.param(encode_rendition(SMALL_RENDITION), decode_rendition, id="rendition"),
]
Decode = Callable[[bytes], Any]


@pytest.mark.parametrize(("data", "decode"), SMALL)
def test_every_flipped_byte_is_noticed(data: bytes, decode: Decode) -> None:
    for at in range(len(data)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= mask
            with pytest.raises(PayloadError):
                decode(bytes(damaged))


@pytest.mark.parametrize(("data", "decode"), SMALL)
def test_every_truncation_and_every_byte_too_many_is_noticed(data: bytes, decode: Decode) -> None:
    for end in range(len(data)):
        with pytest.raises(PayloadError):
            decode(data[:end])
    for more in (b"\0", data[-32:], data):
        with pytest.raises(PayloadError, match="checksum"):
            decode(data + more)


def test_one_kind_is_not_read_as_the_other() -> None:
    with pytest.raises(PayloadError, match="payload is of kind b'R', not b'B'"):
        decode_base(encode_rendition(SMALL_RENDITION))
    with pytest.raises(PayloadError, match="payload is of kind b'B', not b'R'"):
        decode_rendition(encode_base(SMALL_BASE))


def sealed(content: bytes) -> bytes:
    """Content with the checksum that makes it look undamaged."""
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("version", [0, 4, 255])
@pytest.mark.parametrize(("data", "decode"), SMALL)
def test_another_version_is_refused_even_where_its_checksum_is_right(data: bytes, decode: Decode, version: int) -> None:
    changed = bytearray(data[:-32])
    changed[7] = version
    with pytest.raises(PayloadError, match=r"version .*; this release reads \(1, 2, 3\)"):
        decode(sealed(bytes(changed)))


@pytest.mark.parametrize("data", [b"", b"LPACS", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(128) + b"DICM"])
def test_something_else_altogether_is_no_payload(data: bytes) -> None:
    with pytest.raises(PayloadError, match="no magic"):
        decode_base(data)


# --- hostile content under a good checksum --------------------------------------------------------------------


def section(
    name: bytes, body: bytes, *, encoding: int = 0, length: int | None = None, coded: int | None = None
) -> bytes:
    lengths = struct.pack("<QQ", len(body) if length is None else length, len(body) if coded is None else coded)
    return bytes([len(name)]) + name + bytes([encoding]) + lengths + body


def container(*sections: bytes, kind: bytes = b"B", count: int | None = None, version: int = 1) -> bytes:
    head = MAGIC + kind + bytes([version, len(sections) if count is None else count])
    return sealed(head + b"".join(sections))


def sections_of(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the container, after docs/FORMATS.md: encoding and decoded bytes by name."""
    found, at = {}, 9
    for _ in range(data[8]):
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + data[at]
        encoding, length, coded = struct.unpack("<BQQ", data[at : at + 17])
        body = data[at + 17 : at + 17 + coded]
        at += 17 + coded
        body = zlib.decompress(body) if encoding == 1 else body
        assert len(body) == length
        found[name] = (encoding, body)
    assert data[at:] == hashlib.sha256(data[:at]).digest()
    return found


META = sections_of(encode_base(SMALL_BASE))["meta"][1]
HEADER, PIXELS = section(b"header", b"h"), section(b"pixels", b"p")


def test_a_section_that_is_not_known_is_ignored() -> None:
    data = container(section(b"meta", META), HEADER, PIXELS, section(b"future", b"?"))
    assert decode_base(data) == replace(
        SMALL_BASE, header=HeaderBytes("1.2.840.10008.1.2.1", b"h", b""), coded=b"p", padding_mask=b""
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(container(), id="no sections"),
        pytest.param(container(section(b"meta", META), HEADER), id="no pixels"),
        pytest.param(container(HEADER, PIXELS), id="no meta"),
        pytest.param(container(section(b"meta", b"{"), HEADER, PIXELS), id="no JSON"),
        pytest.param(container(section(b"meta", b"\xff"), HEADER, PIXELS), id="no UTF-8"),
        pytest.param(container(section(b"meta", b"[]"), HEADER, PIXELS), id="a list"),
        pytest.param(container(section(b"meta", b"null"), HEADER, PIXELS), id="null"),
        pytest.param(container(section(b"meta", b"{}"), HEADER, PIXELS), id="no fields"),
        pytest.param(container(section(b"m\xe9ta", META), HEADER, PIXELS), id="name not ASCII"),
        pytest.param(container(section(b"meta", META), count=2), id="fewer sections than announced"),
        pytest.param(container(section(b"meta", META), HEADER, PIXELS, b"more", count=3), id="bytes behind"),
        pytest.param(container(section(b"meta", META, length=1), HEADER, PIXELS), id="stored length wrong"),
        pytest.param(container(section(b"meta", META, coded=1), HEADER, PIXELS), id="coded length short"),
        pytest.param(container(section(b"meta", META, coded=2**64 - 1), HEADER, PIXELS), id="coded length huge"),
        pytest.param(container(section(b"meta", META, encoding=1), HEADER, PIXELS), id="not deflated"),
        pytest.param(
            container(section(b"meta", zlib.compress(META), encoding=1, length=len(META) - 1), HEADER, PIXELS),
            id="inflates to more",
        ),
        pytest.param(
            container(section(b"meta", zlib.compress(META), encoding=1, length=2**64 - 1), HEADER, PIXELS),
            id="inflates to the impossible",
        ),
        pytest.param(
            container(section(b"meta", zlib.compress(META)[:-20], encoding=1, length=len(META)), HEADER, PIXELS),
            id="deflated and cut",
        ),
    ],
)
def test_content_that_makes_no_sense_is_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_base(data)


@pytest.mark.parametrize(
    "map_",
    [
        pytest.param(b"\0\0", id="too long"),
        pytest.param(bytes([LIMIT + 1]), id="too coarse"),
        pytest.param(bytes([256 - LIMIT - 1]), id="too fine"),
        pytest.param(b"\x80", id="least int8"),
    ],
)
def test_a_map_that_makes_no_sense_is_a_payload_error(map_: bytes) -> None:
    sections = section(b"meta", META), HEADER, PIXELS
    good = decode_base(container(*sections, section(b"coarseness", b"\x08"), version=2))
    assert good.coarseness is not None
    assert good.coarseness.steps.tolist() == [[8]]
    with pytest.raises(PayloadError, match="coarseness"):
        decode_base(container(*sections, section(b"coarseness", map_), version=2))


@pytest.mark.parametrize("announced", [len(b"header") - 1, len(b"header") + 1])
def test_a_section_that_inflates_to_another_length_is_a_payload_error(announced: int) -> None:
    header = section(b"header", zlib.compress(b"header"), encoding=1, length=announced)
    with pytest.raises(PayloadError, match=f"section header has 6 bytes, not {announced}"):
        decode_base(container(section(b"meta", META), header, PIXELS))


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=120), kind=st.sampled_from([b"B", b"R"]), version=st.sampled_from(VERSIONS))
def test_random_content_is_a_payload_error(content: bytes, kind: bytes, version: int) -> None:
    data = sealed(MAGIC + kind + bytes([version]) + content)
    with pytest.raises(PayloadError):
        (decode_base if kind == b"B" else decode_rendition)(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_meta_with_a_field_of_another_kind_is_read_or_a_payload_error(data: st.DataObject) -> None:
    kind, encoded, decode = data.draw(
        st.sampled_from(
            [(b"B", encode_base(SMALL_BASE), decode_base), (b"R", encode_rendition(SMALL_RENDITION), decode_rendition)]
        )
    )
    meta = json.loads(sections_of(encoded)["meta"][1])
    meta[data.draw(st.sampled_from([*sorted(meta), "unknown"]))] = data.draw(json_values)
    sections = [section(b"meta", json.dumps(meta).encode()), HEADER, PIXELS]
    if data.draw(st.booleans()):
        sections.append(section(b"coarseness", b"\0"))
    changed = container(*sections, kind=kind, version=len(sections) - 2)
    try:
        decode(changed)
    except PayloadError as error:
        assert "malformed" in str(error) or str(error).startswith("coarseness holds")


# --- the padding mask -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_mask_comes_back(mask: NDArray[np.bool_]) -> None:
    before = mask.copy()
    packed = pack_mask(mask)
    assert np.array_equal(mask, before)
    unpacked = unpack_mask(packed, *mask.shape)
    assert unpacked.dtype == np.bool_
    assert np.array_equal(unpacked, mask)
    for rows, columns in ((mask.shape[0] + 1, mask.shape[1]), (mask.shape[0], mask.shape[1] + 8)):
        with pytest.raises(PayloadError, match="padding mask holds"):
            unpack_mask(packed, rows, columns)


def test_a_mask_is_packed_as_documented() -> None:
    mask = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0, 1, 1]], np.bool_)
    assert zlib.decompress(pack_mask(mask)) == bytes([0b10000000, 0b10000000, 0b00000001, 0b00000000])


def test_a_mask_of_a_smooth_border_is_small() -> None:
    rows, columns = np.indices((1000, 800))
    assert len(pack_mask((rows - 500) ** 2 + columns**2 > 400**2)) < 3000


@pytest.mark.parametrize(
    "data",
    [b"", b"no zlib", zlib.compress(bytes(9)), zlib.compress(bytes(10**6)), pack_mask(np.ones((5, 9), np.bool_))[:4]],
)
def test_a_damaged_mask_is_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError, match="padding mask"):
        unpack_mask(data, 5, 9)


# --- derived UIDs ---------------------------------------------------------------------------------------------

INGREDIENTS: dict[str, Any] = {
    "original_uid": "1.2.840.113619.2.66.1",
    "base_digest": DIGEST,
    "upscaler": "mammo",
    "weights_digest": DIGEST[::-1],
    "steps": 1,
    "seed": 7,
    "extra": "",
}


@settings(max_examples=100, deadline=None)
@given(
    original=uids, base=digests, upscaler=texts, weights=digests, steps=st.integers(0, 100), seed=st.integers(0, 2**31)
)
def test_a_derived_uid_is_a_valid_uid_and_a_function(
    original: str, base: str, upscaler: str, weights: str, steps: int, seed: int
) -> None:
    uid = derived_uid(original, base, upscaler, weights, steps, seed)
    assert re.fullmatch(r"2\.25\.(0|[1-9][0-9]*)", uid)  # PS3.5 sections 9.1 and B.2
    assert len(uid) <= 64
    assert int(uid[5:]) < 2**128
    assert uid == derived_uid(original, base, upscaler, weights, steps, seed)
    assert uid != original


def test_a_derived_uid_changes_with_each_ingredient() -> None:
    changes = {
        "original_uid": "1.2.840.113619.2.66.2",
        "base_digest": DIGEST[1:] + "0",
        "upscaler": "sd_x2",
        "weights_digest": DIGEST,
        "steps": 2,
        "seed": 8,
        "extra": DIGEST,
    }
    assert set(changes) == set(INGREDIENTS)
    made = {derived_uid(**INGREDIENTS)}
    made |= {derived_uid(**{**INGREDIENTS, name: value}) for name, value in changes.items()}
    assert len(made) == 1 + len(changes)


def test_derived_uids_are_those_that_were_issued() -> None:
    """Literal: a UID that was issued once has to resolve for ever."""
    assert derived_uid("1.2.3", "ab" * 32, "mammo", "cd" * 32, 1, 7) == "2.25.316300683269301885467352212253909655208"
    with_extra = derived_uid("1.2.3", "ab" * 32, "mammo", "cd" * 32, 1, 7, "ef")
    assert with_extra == "2.25.235499320776610119178293094533108195214"


def test_a_seed_is_31_bits_of_the_digest() -> None:
    assert seed_of("ffffffff" + "0" * 56) == 0x7FFFFFFF
    assert seed_of("80000001" + "f" * 56) == 1
    assert seed_of(DIGEST) == 0x01234567


# --- golden files ---------------------------------------------------------------------------------------------


def test_the_golden_base_reads_as_it_was_written() -> None:
    data = (GOLDEN / "base-v1.lpacs").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "659e2341a124e3c4bec5324b93c2f5d519bd371857a5ccd57ebc8334f868053f"
    base = decode_base(data)
    plain = {each.name: getattr(base, each.name) for each in fields(Base)}
    assert len(plain.pop("coded")) == 20642
    assert len(plain.pop("padding_mask")) == 321
    header = plain.pop("header")
    assert plain == {
        "rung": Rung(scale=2, coder="png16", distance=0.0, effort=9, sample_bits=16),
        "rows": 300,
        "columns": 280,
        "bits_stored": 12,
        "minimum": 704,
        "maximum": 2973,
        "padding": (0, 0),
        "padding_value": 0,
        "exponent": 4,
        "quantisation_rms": 6.103244509503915,
        "original_digest": "b53f3d8826fc5d88dcf2783d38a174ae796a257b2171f6eded935319be234d79",
        "pixel_digest": "277f92e3f8b0c1b238116828e1d3dfef30b179a8a5d9cbf47af69b2fde283cbb",
        "pixel_vr": "OW",
        "operator_name": "torchvision-bicubic-antialias/1",
        "coarseness": None,
        "window": None,
    }
    assert header.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert header.after == b"\xfc\xff\xfc\xffOB\0\0\x08\0\0\0golden\0\0"
    assert sha256(header.before) == "edef4f639ee4adcd967299e686c3095ab29afc362eaa2b3f50912ff381525f7f"
    parsed = header.dataset()
    assert parsed.SOPInstanceUID == "2.25.313131313131313131313131313131313131313"
    assert parsed.PatientName == "Müller^Anna"
    assert (parsed.Rows, parsed.Columns, parsed.PixelPaddingValue) == (300, 280, 0)


def test_the_golden_base_of_version_2_reads_as_it_was_written() -> None:
    data = (GOLDEN / "base-v2.lpacs").read_bytes()
    assert sha256(data) == "ea49f37b57df17cda2adc1f76b9ca480b4f0eabea823310b1c64679caaa2aa54"
    base, first = decode_base(data), decode_base((GOLDEN / "base-v1.lpacs").read_bytes())
    assert (len(base.coded), base.coded[4:12]) == (1521, b"ftypavif")
    map_ = base.coarseness
    assert map_ is not None
    assert (map_.rows, map_.columns, map_.steps.dtype, map_.steps.tolist()) == (300, 280, np.int8, [[4, -3], [-2, 11]])
    rung = Rung(scale=2, coder="avif", distance=0.5, effort=7, sample_bits=12)
    same = replace(
        base, rung=first.rung, exponent=4, quantisation_rms=first.quantisation_rms, coded=first.coded, coarseness=None
    )
    assert (base.rung, base.exponent, base.quantisation_rms) == (rung, 0, 27.561606395534223)
    assert same == first  # of the same image


def test_the_golden_samples_of_version_2_decode_to_the_same_values() -> None:
    """AV1 decodes in integers and the map comes from a table: the same bits on every machine."""
    base = decode_base((GOLDEN / "base-v2.lpacs").read_bytes())
    coded = coders.decode(base.coded, base.rung, (150, 140))
    assert sha256(coded.astype("<u2").tobytes()) == "77649f9c8aa44350a2b85e6f8af4cb60c6cd712155377117ee5421946ea1e2e8"
    assert base.coarseness is not None
    assert (
        sha256(base.coarseness.scaling(2).astype("<f4").tobytes())
        == "8c38ceee186c65205b15d1c284dda3a2e46e2ec89bc81f552f3c30e45fd49c85"
    )
    samples = base.samples()
    assert (samples.shape, samples.dtype) == ((150, 140), np.float32)
    assert sha256(samples.astype("<f4").tobytes()) == "b4c802487c3f65c6206434f8715df49fc52f272608b1eb7a1f0944895e003080"
    first = decode_base((GOLDEN / "base-v1.lpacs").read_bytes()).samples()
    assert np.sqrt(np.mean(np.square(samples - first))) < 30  # and it is the image still


def test_the_golden_base_of_version_3_reads_as_it_was_written() -> None:
    """Only a part of the same samples is coded; what is beyond is black."""
    data = (GOLDEN / "base-v3.lpacs").read_bytes()
    assert sha256(data) == "e3597effb62c84daaed5570d77bf45a45d59a358bd1ee78b1a60c6f9a6c5c728"
    base, second = decode_base(data), decode_base((GOLDEN / "base-v2.lpacs").read_bytes())
    assert base.window == Window(11, 0, 129, 114, beyond=0)
    assert len(base.coded) == 1539
    same = replace(base, window=None, coded=second.coded, quantisation_rms=second.quantisation_rms)
    assert plain(same) == plain(second)
    samples = base.samples()
    assert sha256(samples.astype("<f4").tobytes()) == "4d6c714bb8b7cb8178c9c537d29c060c30990189dec7e2d1ead9f18269a9ef7c"
    assert not samples[:11].any()
    assert not samples[140:].any()
    assert not samples[:, 114:].any()
    assert np.sqrt(np.mean(np.square(samples - second.samples()))) < 30


def test_the_golden_samples_and_padding_decode_to_the_same_values() -> None:
    base = decode_base((GOLDEN / "base-v1.lpacs").read_bytes())
    samples = base.samples()
    assert (samples.shape, samples.dtype) == ((150, 140), np.float32)
    assert float(samples.max()) == 2948.875
    assert float(samples.sum(dtype=np.float64)) == 19628628.9375
    expected = "e5d0fb96ee5a88582c895f6fd83556bf2f64b1d2165d31af94e4e129e113ab1b"
    assert sha256(samples.astype("<f4").tobytes()) == expected
    padding = base.padding_pixels()
    assert padding is not None
    assert (padding.shape, int(padding.sum())) == ((300, 280), 39562)
    assert sha256(padding.tobytes()) == "e2f2682ff8cead4d2929ce2e192411317aa21e7de0b783d71f6538d9942fe0fc"


def test_the_golden_rendition_reads_as_it_was_written() -> None:
    data = (GOLDEN / "rendition-v1.lpacs").read_bytes()
    assert sha256(data) == "9db6b3c5a465fda0a52d2ce9ef05306e822cae71f8054974873a09aa2ee1e1c5"
    passed = Verdict(38.25, 0.96875, 0.9375, 4, {"rmse": 12.5, "window_width": 4096.0}, (), True)
    missed = Verdict(31.5, 0.91, 0.87, 4, {"rmse": 40.25}, ("tile FSIM mean 0.91 is below 0.93",), True)
    rendition = decode_rendition(data)
    assert rendition == Rendition(
        base_digest="659e2341a124e3c4bec5324b93c2f5d519bd371857a5ccd57ebc8334f868053f",
        original_uid="2.25.313131313131313131313131313131313131313",
        derived_uid="2.25.45289525135600007732521674311560449465",
        upscaler="sd_x2",
        method="ISO_15444_1",
        generative=True,
        weights_digest="9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        numerics={"device": "cpu", "dtype": "float32", "torch": "2.0"},
        steps=10,
        seed=1704862529,
        output_digest="e0ee8bb50685e05fa0f47ed04203ae953fdfd055f5bd2892ea186504254f8c3a",
        verdict=passed,
        tried=(RungOutcome("x4 png16", 9000, missed, 1.5), RungOutcome("x2 png16", 22220, passed, 2.25)),
        postprocessing="1",
        guide=b"guide of each tile",
        points=b"points",
        patches=b"patches",
        extra={"note": "golden"},
    )
    assert (passed.passed, missed.passed) == (True, False)
    base = sha256((GOLDEN / "base-v1.lpacs").read_bytes())
    assert rendition.base_digest == base
    assert rendition.seed == seed_of(base)
    assert rendition.derived_uid == derived_uid(
        rendition.original_uid, base, "sd_x2", rendition.weights_digest, rendition.steps, rendition.seed
    )


@pytest.mark.parametrize(
    ("name", "decode", "encode", "stored"),
    [
        ("base-v1.lpacs", decode_base, encode_base, {"meta": 1, "header": 1, "trailer": 1, "pixels": 0, "padding": 0}),
        (
            *("base-v2.lpacs", decode_base, encode_base),
            {"meta": 1, "header": 1, "trailer": 1, "pixels": 0, "padding": 0, "coarseness": 1},
        ),
        (
            *("base-v3.lpacs", decode_base, encode_base),
            {"meta": 1, "header": 1, "trailer": 1, "pixels": 0, "padding": 0, "coarseness": 1, "window": 1},
        ),
        ("rendition-v1.lpacs", decode_rendition, encode_rendition, {"meta": 1, "guide": 0, "points": 0, "patches": 0}),
    ],
)
def test_what_is_written_today_has_the_sections_of_the_golden_file(
    name: str, decode: Decode, encode: Callable[[Any], bytes], stored: dict[str, int]
) -> None:
    golden = (GOLDEN / name).read_bytes()
    today = encode(decode(golden))
    version = int(re.fullmatch(r"\w+-v(\d+)\.lpacs", name)[1])  # type: ignore[index]
    assert today[:8] == golden[:8] == b"LPACS\0" + name[:1].upper().encode() + bytes([version])
    assert sections_of(today) == sections_of(golden)  # deflate itself may differ from one zlib to another
    assert {section_name: encoding for section_name, (encoding, _) in sections_of(golden).items()} == stored
    assert list(sections_of(today)) == list(stored)


def test_there_is_a_golden_base_of_every_version_that_is_read() -> None:
    """A new version needs new golden files beside the old ones."""
    written = {path.name for path in GOLDEN.glob("*.lpacs")}
    assert {path for path in written if path.startswith("base")} == {f"base-v{version}.lpacs" for version in VERSIONS}
    assert "rendition-v1.lpacs" in written
    assert OPERATOR == "torchvision-bicubic-antialias/1"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
