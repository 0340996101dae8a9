"""Proves storage.formats.payload: round trips, damage of every byte, hostile content, golden files, derived UIDs."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from node.codec.decode import SideInformation
from node.codec.fingerprint import fingerprint_of
from node.codec.points import Point
from storage.dicom.dicomfile import HeaderBytes
from storage.errors import PayloadError
from storage.formats import coders
from storage.formats import container as container_module
from storage.formats.container import DICTIONARY, MAGIC, VERSION, pack, unpack
from storage.formats.padding import pack_mask, pack_padding, unpack_mask
from storage.formats.payload import (
    CURVE_KNOTS,
    Base,
    CodedRegion,
    Rendition,
    decode_base,
    decode_rendition,
    encode_base,
    encode_rendition,
    mapped,
    seed_of,
    structure_uid,
    unmapped,
    with_derived_uid,
)
from storage.records import OperatingPoint, Verdict
from tests.support.paths import GOLDEN, ROOT
from tests.support.samples import breast

FORMATS = (ROOT / "docs/FORMATS.md").read_text(encoding="utf-8")
DIGEST = "0123456789abcdef" * 4

# --- strategies -----------------------------------------------------------------------------------------------

digests = st.text("0123456789abcdef", min_size=64, max_size=64)
uids = st.from_regex(r"2\.25\.[1-9][0-9]{0,37}", fullmatch=True)
figures = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
points = st.builds(
    OperatingPoint,
    scale=st.sampled_from([1, 2, 4]),
    coder=st.sampled_from(sorted(coders.CODERS)),
    distance=st.floats(0, 15),
    effort=st.integers(1, 9),
    companded=st.booleans(),
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
gains = st.floats(1e-6, 65535) | st.floats(-65535, -1e-6)
regions = st.none() | st.builds(CodedRegion, *[st.integers(0, 2**32 - 1)] * 5)
bases = st.builds(
    Base,
    point=points,
    rows=st.integers(1, 65535),
    columns=st.integers(1, 65535),
    bits_stored=st.integers(1, 16),
    minimum=st.integers(0, 65535),
    maximum=st.integers(0, 65535),
    padding=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    offset=st.floats(-65535, 65535),
    gain=gains,
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
    padding_bytes=st.binary(max_size=50),
    operator_name=texts,
    region=regions,
    curve=st.binary(max_size=70),
)
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
    structure_digest=digests,
    verdict=verdicts,
    postprocessing=texts,
    noise=st.binary(max_size=50),
    repairs=st.binary(max_size=50),
    points=st.binary(max_size=50),
    patches=st.binary(max_size=50),
    fingerprint=st.binary(max_size=50),
    measured_uid=st.just("") | uids,
    extra=st.dictionaries(texts, texts | st.integers() | st.booleans() | st.none() | st.lists(texts), max_size=3),
)

SAMPLES = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
DIAGONAL = np.eye(6, 7, dtype=np.bool_)
POINT = OperatingPoint(2, "png16", effort=1)
SMALL_BASE = Base(
    point=POINT,
    rows=6,
    columns=7,
    bits_stored=12,
    minimum=1,
    maximum=4095,
    padding=(0, 0),
    offset=100.0,
    gain=16.0,
    quantisation_rms=0.25,
    original_digest=DIGEST,
    pixel_digest=DIGEST[::-1],
    pixel_vr="OW",
    header=HeaderBytes("1.2.840.10008.1.2.1", b"before", b"after"),
    coded=coders.encode(SAMPLES, POINT),
    padding_bytes=pack_padding(DIAGONAL.astype(np.uint16) * 9, DIAGONAL),
)
LARGE_POINT = OperatingPoint(4, "png16", effort=1)
REGION_BASE = replace(
    SMALL_BASE,
    point=LARGE_POINT,
    rows=300,
    columns=520,
    padding_bytes=b"",
    coded=coders.encode(np.random.default_rng(1).integers(0, 60000, (40, 70)).astype(np.uint16), LARGE_POINT),
    region=CodedRegion(20, 60, 40, 70, beyond=1234),
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
    structure_digest=DIGEST[::-1],
    verdict=Verdict(40.0, 0.97, 0.95, 9, {"slow": 0.0015}),
    noise=b"noise",
)
CHANGED_BASE: dict[str, Any] = {
    **{"point": OperatingPoint(2, "png16", effort=2), "rows": 5, "columns": 8, "bits_stored": 14, "minimum": 2},
    **{"maximum": 9, "padding": None, "offset": 1.0, "gain": -16.0, "quantisation_rms": 0.5, "pixel_vr": "OB"},
    **{"original_digest": DIGEST[::-1], "pixel_digest": DIGEST, "coded": b"c", "padding_bytes": b""},
    "operator_name": "",
    "header": HeaderBytes("1.2.840.10008.1.2.1", b"before", b""),
    "region": CodedRegion(0, 1, 2, 3, beyond=4),
    "curve": b"c",
}
CHANGED_RENDITION: dict[str, Any] = {
    **{"base_digest": "", "original_uid": "1", "derived_uid": "2", "upscaler": "u", "method": "", "generative": True},
    **{"weights_digest": DIGEST, "numerics": {}, "steps": 1, "seed": 8, "output_digest": "", "postprocessing": "0"},
    **{"structure_digest": "", "verdict": Verdict(40.0, 0.97, 0.95, 9), "noise": b"", "repairs": b"r"},
    **{"points": b"q", "patches": b"p", "extra": {"a": 1}, "fingerprint": b"f", "measured_uid": "3"},
}


# --- round trips ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(base=bases)
def test_a_base_is_restored(base: Base) -> None:
    assert decode_base(encode_base(base)) == base


def test_samples_outside_the_region_have_one_grey_level() -> None:
    """The scale is 4, and 40 x 70 of 75 x 130 samples are encoded."""
    coded = coders.decode(REGION_BASE.coded, LARGE_POINT, (40, 70))
    whole = replace(REGION_BASE, coded=coders.encode(np.pad(coded, ((20, 15), (60, 0))), LARGE_POINT), region=None)
    samples = decode_base(encode_base(REGION_BASE)).samples()
    assert samples.shape == (75, 130)
    assert np.array_equal(samples[20:60, 60:], whole.samples()[20:60, 60:])
    samples[20:60, 60:] = 1234
    assert (samples == 1234).all()


@pytest.mark.parametrize("region", [(0, 0, 76, 130), (1, 0, 75, 130), (0, 100, 75, 31), (0, 0, 0, 9), (5, 5, 9, 0)])
def test_a_region_beyond_the_samples_is_a_payload_error(region: tuple[int, int, int, int]) -> None:
    base = decode_base(encode_base(replace(REGION_BASE, region=CodedRegion(*region, beyond=0))))
    with pytest.raises(PayloadError, match="region"):
        base.samples()


def test_a_region_of_another_length_is_a_payload_error() -> None:
    for size in (19, 21):
        data = container(section(b"meta", META), HEADER, PIXELS, section(b"region", bytes(size)))
        with pytest.raises(PayloadError, match="malformed"):
            decode_base(data)


@pytest.mark.parametrize(("name", "value"), [("gain", "0"), ("gain", "NaN"), ("gain", "1e999"), ("offset", "1e999")])
def test_an_invalid_gain_or_offset_is_a_payload_error(name: str, value: str) -> None:
    meta = json.loads(META)
    told = json.dumps(meta | {name: "?"}).replace('"?"', value).encode()
    with pytest.raises(PayloadError, match=rf"{name} is "):
        decode_base(container(section(b"meta", told), HEADER, PIXELS))


@settings(max_examples=100, deadline=None)
@given(rendition=renditions)
def test_a_rendition_is_restored(rendition: Rendition) -> None:
    decoded = decode_rendition(encode_rendition(rendition))
    assert decoded == rendition
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
    assert np.array_equal(samples, SAMPLES / 16 + 100)
    assert np.array_equal(replace(SMALL_BASE, offset=4095.0, gain=-0.25).samples(), 4095 - SAMPLES * 4.0)


def curve(power: float) -> bytes:
    return np.rint(65535 * np.linspace(0, 1, CURVE_KNOTS) ** power).astype("<u2").tobytes()


@pytest.mark.parametrize("power", [0.6, 1.0, 1.6])
def test_a_curve_is_inverted(power: float) -> None:
    """The inverse is exact without rounding, and otherwise within the rounding error."""
    levels = np.linspace(0, 65535, 1000).astype(np.float32)[None]
    there = mapped(levels, curve(power))
    assert there[0, 500] == pytest.approx(65535 * (levels[0, 500] / 65535) ** power, rel=0.01)
    np.testing.assert_allclose(unmapped(there, curve(power)), levels, atol=0.1)
    samples = replace(SMALL_BASE, curve=curve(power)).samples()
    np.testing.assert_allclose((samples - 100) * 16, unmapped(SAMPLES.astype(np.float32), curve(power)), atol=0.5)


@pytest.mark.parametrize("damaged", [curve(1.0)[:-2], curve(1.0) + b"\0\0", curve(1.0)[::-1], bytes(66), b"\1"])
def test_a_curve_that_does_not_rise_is_a_payload_error(damaged: bytes) -> None:
    with pytest.raises(PayloadError, match="does not rise"):
        decode_base(encode_base(replace(SMALL_BASE, curve=damaged))).samples()


def test_samples_of_another_operator_or_shape_are_refused() -> None:
    with pytest.raises(PayloadError, match="needs operator lanczos/9; this release has torchvision"):
        replace(SMALL_BASE, operator_name="lanczos/9").samples()
    with pytest.raises(PayloadError, match=r"not uint16 \(4, 4\)"):
        replace(SMALL_BASE, rows=7).samples()


def test_padding_is_restored() -> None:
    padding = SMALL_BASE.padding_content()
    assert padding is not None
    mask, values = padding
    assert np.array_equal(mask, DIAGONAL)
    assert values.tolist() == [9] * 6
    assert replace(SMALL_BASE, padding_bytes=b"").padding_content() is None


# --- damage ---------------------------------------------------------------------------------------------------

SMALL = [
    pytest.param(encode_base(SMALL_BASE), decode_base, id="base"),
    pytest.param(encode_base(replace(REGION_BASE, coded=b"c")), decode_base, id="base of a region"),
    pytest.param(encode_rendition(SMALL_RENDITION), decode_rendition, id="rendition"),
]
Decode = Callable[[bytes], Any]


@pytest.mark.parametrize(("data", "decode"), SMALL)
def test_every_flipped_byte_is_detected(data: bytes, decode: Decode) -> None:
    for at in range(len(data)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= mask
            with pytest.raises(PayloadError):
                decode(bytes(damaged))


@pytest.mark.parametrize(("data", "decode"), SMALL)
def test_truncated_and_extended_payloads_are_detected(data: bytes, decode: Decode) -> None:
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
    """Content followed by its valid checksum."""
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("version", [0, 2, 255])
@pytest.mark.parametrize(("data", "decode"), SMALL)
def test_another_version_is_refused_even_with_a_valid_checksum(data: bytes, decode: Decode, version: int) -> None:
    changed = bytearray(data[:-32])
    changed[7] = version
    with pytest.raises(PayloadError, match=r"version .*; this release reads 01"):
        decode(sealed(bytes(changed)))


@pytest.mark.parametrize("data", [b"", b"LPACS", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(128) + b"DICM"])
def test_other_bytes_are_not_a_payload(data: bytes) -> None:
    with pytest.raises(PayloadError, match="no magic"):
        decode_base(data)


# --- hostile content under a good checksum --------------------------------------------------------------------


def section(
    name: bytes, body: bytes, *, encoding: int = 0, length: int | None = None, coded: int | None = None
) -> bytes:
    lengths = struct.pack("<QQ", len(body) if length is None else length, len(body) if coded is None else coded)
    return bytes([len(name)]) + name + bytes([encoding]) + lengths + body


def container(*sections: bytes, kind: bytes = b"B", count: int | None = None) -> bytes:
    head = MAGIC + kind + bytes([VERSION, len(sections) if count is None else count])
    return sealed(head + b"".join(sections))


def sections_of(data: bytes) -> dict[str, tuple[int, bytes]]:
    """An independent reader of the container, as in docs/FORMATS.md: encoding and inflated bytes by section name."""
    found, at = {}, 9
    for _ in range(data[8]):
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + data[at]
        encoding, length, coded = struct.unpack("<BQQ", data[at : at + 17])
        body = data[at + 17 : at + 17 + coded]
        at += 17 + coded
        body = zlib.decompressobj(zdict=DICTIONARY).decompress(body) if encoding == 1 else body
        assert len(body) == length
        found[name] = (encoding, body)
    assert data[at:] == hashlib.sha256(data[:at]).digest()
    return found


META = sections_of(encode_base(SMALL_BASE))["meta"][1]
HEADER, PIXELS = section(b"header", b"h"), section(b"pixels", b"p")


def test_the_dictionary_stays() -> None:
    """Stored objects cannot be read with another dictionary."""
    assert hashlib.sha256(DICTIONARY).hexdigest() == "f65ea0da8c7ddb8a25871edc0e1652a430ad150f27157b8fc6c7a1686f5e697f"


def test_an_unknown_section_is_ignored() -> None:
    data = container(section(b"meta", META), HEADER, PIXELS, section(b"future", b"?"))
    assert decode_base(data) == replace(
        SMALL_BASE, header=HeaderBytes("1.2.840.10008.1.2.1", b"h", b""), coded=b"p", padding_bytes=b""
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
def test_malformed_content_is_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_base(data)


@pytest.mark.parametrize("announced", [len(b"header") - 1, len(b"header") + 1])
def test_a_section_that_inflates_to_another_length_is_a_payload_error(announced: int) -> None:
    header = section(b"header", zlib.compress(b"header"), encoding=1, length=announced)
    with pytest.raises(PayloadError, match=f"section header has 6 bytes, not {announced}"):
        decode_base(container(section(b"meta", META), header, PIXELS))


def test_a_section_above_the_limit_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_module, "MAX_SECTION", 1000)
    whole = pack(b"B", {"meta": bytes(1000)}, stored=set())
    assert unpack(whole, b"B") == {"meta": bytes(1000)}
    monkeypatch.setattr(container_module, "_inflate", None)
    with pytest.raises(PayloadError, match="payload section meta would inflate to 1001 bytes"):
        unpack(pack(b"B", {"meta": bytes(1001)}, stored=set()), b"B")


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=120), kind=st.sampled_from([b"B", b"R"]))
def test_random_content_is_a_payload_error(content: bytes, kind: bytes) -> None:
    data = sealed(MAGIC + kind + bytes([VERSION]) + content)
    with pytest.raises(PayloadError):
        (decode_base if kind == b"B" else decode_rendition)(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_metadata_of_another_type_is_read_or_a_payload_error(data: st.DataObject) -> None:
    kind, encoded, decode = data.draw(
        st.sampled_from(
            [(b"B", encode_base(SMALL_BASE), decode_base), (b"R", encode_rendition(SMALL_RENDITION), decode_rendition)]
        )
    )
    meta = json.loads(sections_of(encoded)["meta"][1])
    meta[data.draw(st.sampled_from([*sorted(meta), "unknown"]))] = data.draw(json_values)
    changed = container(section(b"meta", json.dumps(meta).encode()), HEADER, PIXELS, kind=kind)
    try:
        decode(changed)
    except PayloadError as error:
        assert "malformed" in str(error)


# --- the padding mask -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(mask=arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_mask_is_restored(mask: NDArray[np.bool_]) -> None:
    before = mask.copy()
    packed = pack_mask(mask)
    assert np.array_equal(mask, before)
    unpacked = unpack_mask(packed, *mask.shape)
    assert unpacked.dtype == np.bool_
    assert np.array_equal(unpacked, mask)
    for rows, columns in ((mask.shape[0] + 1, mask.shape[1]), (mask.shape[0], mask.shape[1] + 8)):
        with pytest.raises(PayloadError, match="padding mask has"):
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
    with pytest.raises(PayloadError, match="padding"):
        unpack_mask(data, 5, 9)


# --- derived UIDs ---------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    original=uids, base=digests, upscaler=texts, weights=digests, steps=st.integers(0, 100), seed=st.integers(0, 2**31)
)
def test_a_derived_uid_is_a_valid_uid_and_a_function(
    original: str, base: str, upscaler: str, weights: str, steps: int, seed: int
) -> None:
    changes: dict[str, Any] = {"original_uid": original, "base_digest": base, "upscaler": upscaler}
    made = replace(SMALL_RENDITION, **changes, weights_digest=weights, steps=steps, seed=seed)
    uid = with_derived_uid(made).derived_uid
    assert re.fullmatch(r"2\.25\.(0|[1-9][0-9]*)", uid)  # PS3.5 sections 9.1 and B.2
    assert len(uid) <= 64
    assert int(uid[5:]) < 2**128
    assert with_derived_uid(made) == replace(made, derived_uid=uid)
    assert uid != original


def test_a_derived_uid_changes_with_all_that_determines_the_object() -> None:
    """Other numerics alone change no UID, but the pixels that they change do."""
    changes: dict[str, Any] = {
        **{"original_uid": "1.2.840.113619.2.66.2", "base_digest": DIGEST[1:] + "0", "upscaler": "sd_x2"},
        **{"weights_digest": DIGEST[2:] + "00", "steps": 99, "seed": 98, "postprocessing": "2"},
        **{name: name.encode() for name in ("repairs", "points", "patches")},
        "noise": b"other",
        **{"output_digest": DIGEST[3:] + "000", "structure_digest": DIGEST[4:] + "0000"},
    }
    made = {with_derived_uid(SMALL_RENDITION).derived_uid}
    made |= {with_derived_uid(replace(SMALL_RENDITION, **{one: changes[one]})).derived_uid for one in changes}
    assert len(made) == 1 + len(changes)
    same = replace(SMALL_RENDITION, numerics={"torch": "other"}, fingerprint=b"other", measured_uid="1")
    assert with_derived_uid(same).derived_uid in made


def test_derived_uids_do_not_change_between_releases() -> None:
    """The values are literal, because an issued UID must stay valid."""
    assert with_derived_uid(SMALL_RENDITION).derived_uid == "2.25.98523432478869763998700303453635553641"
    assert structure_uid("2.25.1") == "2.25.217636405003024167748214946287842125046"


def test_a_reconstruction_without_noise_is_another_object() -> None:
    assert SMALL_RENDITION.structure_uid == structure_uid(SMALL_RENDITION.derived_uid) != SMALL_RENDITION.derived_uid


def test_a_seed_is_31_bits_of_the_digest() -> None:
    assert seed_of("ffffffff" + "0" * 56) == 0x7FFFFFFF
    assert seed_of("80000001" + "f" * 56) == 1
    assert seed_of(DIGEST) == 0x01234567


# --- golden files ---------------------------------------------------------------------------------------------

SYNTHETIC = {
    "rows": 300,
    "columns": 280,
    "bits_stored": 12,
    "minimum": 704,
    "maximum": 2973,
    "padding": (0, 0),
    "original_digest": "b53f3d8826fc5d88dcf2783d38a174ae796a257b2171f6eded935319be234d79",
    "pixel_digest": "277f92e3f8b0c1b238116828e1d3dfef30b179a8a5d9cbf47af69b2fde283cbb",
    "pixel_vr": "OW",
    "operator_name": "torchvision-bicubic-antialias/1",
}


def golden(name: str, digest: str) -> bytes:
    data = (GOLDEN / name).read_bytes()
    assert sha256(data) == digest, "golden files are never replaced"
    return data


def golden_base() -> bytes:
    return golden("base-v1.lpacs", "d67da9487b6472cd85763b7bbac67b0f68a41fcab7004433f939dd6557220d26")


def golden_rendition() -> bytes:
    return golden("rendition-v1.lpacs", "42bd9433a75317fe8593c552f3cc6a8b37f90404eafe627e8926aceb0e38f4b9")


def test_the_golden_base_reads_as_it_was_written() -> None:
    base = decode_base(golden_base())
    plain = {each.name: getattr(base, each.name) for each in fields(Base)}
    assert (len(plain.pop("coded")), len(plain.pop("padding_bytes"))) == (20642, 177)
    header = plain.pop("header")
    assert plain == SYNTHETIC | {
        "point": OperatingPoint(2, "png16", distance=0.0, effort=9),
        "offset": 0.0,
        "gain": 16.0,
        "quantisation_rms": 6.103244509503915,
        "region": None,
        "curve": b"",
    }
    assert header.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert header.after == b"\xfc\xff\xfc\xffOB\0\0\x08\0\0\0golden\0\0"
    assert sha256(header.before) == "edef4f639ee4adcd967299e686c3095ab29afc362eaa2b3f50912ff381525f7f"
    parsed = header.dataset()
    assert parsed.SOPInstanceUID == "2.25.313131313131313131313131313131313131313"
    assert parsed.PatientName == "Müller^Anna"
    assert (parsed.Rows, parsed.Columns, parsed.PixelPaddingValue) == (300, 280, 0)


def test_the_golden_samples_and_padding_decode_to_the_same_values() -> None:
    base = decode_base(golden_base())
    samples = base.samples()
    assert (samples.shape, samples.dtype) == ((150, 140), np.float32)
    assert float(samples.max()) == 2948.875
    assert float(samples.sum(dtype=np.float64)) == 19628628.9375
    expected = "e5d0fb96ee5a88582c895f6fd83556bf2f64b1d2165d31af94e4e129e113ab1b"
    assert sha256(samples.astype("<f4").tobytes()) == expected
    padding = base.padding_content()
    assert padding is not None
    mask, values = padding
    assert (mask.shape, int(mask.sum()), values.shape, int(values.max())) == ((300, 280), 39562, (39562,), 0)
    assert sha256(mask.tobytes()) == "e2f2682ff8cead4d2929ce2e192411317aa21e7de0b783d71f6538d9942fe0fc"


def test_the_golden_base_of_a_region_reads_as_it_was_written() -> None:
    """A part of the samples is encoded, in JPEG XL with a negative gain and a curve; the others are black."""
    data = golden("base-region-v1.lpacs", "63e28c09e7fac9696f78d7296d4c28b4e3cc3100e3aaee4ba511018cb7df1969")
    base = decode_base(data)
    plain = {each.name: getattr(base, each.name) for each in fields(Base)}
    assert (len(plain.pop("coded")), len(plain.pop("padding_bytes"))) == (4003, 177)
    assert plain.pop("header") == decode_base(golden_base()).header
    assert plain == SYNTHETIC | {
        "point": OperatingPoint(2, "jpegxl", distance=0.5, effort=7, companded=True),
        "offset": 2973.0,
        "gain": -20.0,
        "quantisation_rms": 12.928779070288781,
        "region": CodedRegion(11, 0, 129, 114, beyond=0),
        "curve": curve(0.8),
    }
    samples = base.samples()
    assert (samples[:11].any(), samples[140:].any(), samples[:, 114:].any()) == (False, False, False)
    # lossy JPEG XL may decode to other least significant bits on another processor
    assert float(samples.sum(dtype=np.float64)) == pytest.approx(19617147.39, abs=1000)
    off = samples - decode_base(golden_base()).samples()
    assert np.sqrt(np.mean(np.square(off))) == pytest.approx(14.02, abs=0.1)


def test_the_golden_rendition_reads_as_it_was_written() -> None:
    rendition = decode_rendition(golden_rendition())
    parts = {name: getattr(rendition, name) for name in ("noise", "repairs", "points", "patches")}
    assert {name: (len(part), sha256(part)[:16]) for name, part in parts.items()} == {
        "noise": (311, "b1a99888764475fe"),
        "repairs": (166, "fb8e1f8b337c917f"),
        "points": (25, "4a205068c90dd20f"),
        "patches": (1121, "90c98a05c9af4e4f"),
    }
    assert rendition == Rendition(
        base_digest="d67da9487b6472cd85763b7bbac67b0f68a41fcab7004433f939dd6557220d26",
        original_uid="2.25.313131313131313131313131313131313131313",
        derived_uid="2.25.203833088544166668930974403658512030519",
        upscaler="sd_x2",
        method="LDM_UPSCALE_1",
        generative=True,
        weights_digest="9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        numerics={"device": "cpu", "dtype": "float32", "torch": "2.0"},
        steps=10,
        seed=1451075912,
        output_digest="e0ee8bb50685e05fa0f47ed04203ae953fdfd055f5bd2892ea186504254f8c3a",
        structure_digest="520cdb563bf80b193aab6aad62781a9647c75dbf76748117299c7dac0ae63a87",
        verdict=Verdict(38.25, 0.96875, 0.9375, 4, {"lines_1.2": 3.75, "window_width": 4096.0}, (), True),
        postprocessing="1",
        **parts,
        fingerprint=fingerprint_of(np.full((300, 280), 1000, dtype=np.uint16)),
        measured_uid="2.25.1",
        extra={"minimum": [704, 705], "maximum": [2973, 2970]},
    )
    assert rendition.structure_uid == "2.25.104399792353543898393450272325670431568"
    base = sha256(golden_base())
    assert (rendition.base_digest, rendition.seed) == (base, seed_of(base))
    assert rendition == with_derived_uid(rendition)


def test_the_golden_side_information_reads_as_it_was_written() -> None:
    side = SideInformation.of(decode_rendition(golden_rendition()))
    side.check(300, 280)
    noise, repairs, spots, patches = side.noise, side.repairs, side.points, side.patches
    assert noise is not None and repairs is not None and spots is not None and patches is not None
    assert (noise.low, noise.high, noise.gain) == (704.0, 2973.0, 1.25)
    assert (noise.curve[0], noise.curve[-1], noise.place[0, 0], noise.place[4, 4]) == (140, 160, 0, 192)
    assert (noise.spectrum[0, 19], noise.spectrum[64, 20]) == (255, 200)
    assert noise.quiet is not None
    assert np.argwhere(noise.quiet).tolist() == [[10, 12], [10, 13]]
    assert (repairs.unit, np.argwhere(repairs.cells).tolist()) == (8.0, [[4, 2], [4, 3], [5, 2], [5, 3]])
    field = repairs.field()
    assert field[74, 44] == pytest.approx(300, rel=0.02)
    assert not field[:64].any()
    assert spots.spots == (Point(150, 60, 1, 50), Point(150, 90, 3, -20))
    assert np.argwhere(patches.cells).tolist() == [[11, 1], [11, 2], [12, 1], [12, 2]]
    assert np.array_equal(patches.strip[:16, :32], breast(300, 280, seed=1)[176:192, 16:48])


@pytest.mark.parametrize(
    ("name", "decode", "encode", "stored"),
    [
        ("base-v1.lpacs", decode_base, encode_base, {"meta": 1, "header": 1, "trailer": 1, "pixels": 0, "padding": 0}),
        (
            *("base-region-v1.lpacs", decode_base, encode_base),
            {"meta": 1, "header": 1, "trailer": 1, "pixels": 0, "padding": 0, "curve": 0, "region": 0},
        ),
        (
            *("rendition-v1.lpacs", decode_rendition, encode_rendition),
            {"meta": 1, "noise": 0, "repairs": 0, "points": 0, "patches": 0, "fingerprint": 0},
        ),
    ],
)
def test_new_payloads_have_the_sections_of_the_golden_file(
    name: str, decode: Decode, encode: Callable[[Any], bytes], stored: dict[str, int]
) -> None:
    data = (GOLDEN / name).read_bytes()
    today = encode(decode(data))
    assert today[:8] == data[:8] == b"LPACS\0" + name[:1].upper().encode() + b"\x01"
    assert sections_of(today) == sections_of(data)  # deflated bytes may differ between versions of zlib
    assert {section_name: encoding for section_name, (encoding, _) in sections_of(data).items()} == stored
    assert list(sections_of(today)) == list(stored)


# --- the document ---------------------------------------------------------------------------------------------


def rows_of(heading: str) -> set[str]:
    """The names in backquotes of the first columns of the tables under a heading of docs/FORMATS.md."""
    part = FORMATS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(("heading", "data"), [("base", "base-region-v1.lpacs"), ("rendition", "rendition-v1.lpacs")])
def test_every_section_and_key_is_documented(heading: str, data: str) -> None:
    sections = sections_of((GOLDEN / data).read_bytes())
    keys = set(json.loads(sections["meta"][1]))
    documented = rows_of(heading)
    assert (set(sections) | keys) <= documented
    assert documented <= set(sections) | keys, "documented, and not written"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
