"""Bytes of records: what goes in comes out, and nothing else is ever accepted."""

import contextlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from buffer.codec import (
    decode_header,
    decode_latent,
    decode_record,
    decode_scores,
    encode_header,
    encode_latent,
    encode_record,
    encode_scores,
    latent_frame_bytes,
)
from buffer.errors import CodecError
from buffer.records import (
    Record,
    Scores,
    check_latent,
    record_id,
)
from tests.unit.codec_examples import RECORD, SCORES

finite_fp16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
latent_shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
latents = latent_shapes.flatmap(lambda shape: arrays(np.float16, shape, elements=finite_fp16))
steps = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5, unique=True).map(sorted)


@st.composite
def records(draw: st.DrawFn) -> Record:
    labels = tuple(draw(steps))
    positions = st.lists(st.sampled_from(range(len(labels))), min_size=1, unique=True)
    ticket, member = draw(st.integers(0, 10**10 - 1)), draw(st.integers(0, 999))
    shape = (len(labels), *draw(latent_shapes))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).standard_normal(shape)
    return Record(
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt=draw(st.text(max_size=50)),
        policy_version=draw(st.integers(0, 2**53)),
        seed=draw(st.integers(0, 2**64 - 1)),
        steps=labels,
        scored=tuple(sorted(draw(positions))),
        latents=tuple(noise.astype(np.float16)),
    )


names = st.text("abcXYZ019_.:-", min_size=1, max_size=8)
rewards = st.integers(1, 4).flatmap(
    lambda count: st.dictionaries(
        names,
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * count),
        min_size=1,
        max_size=4,
    )
)


def large_with(odd: float) -> np.ndarray:
    """A latent large enough to be checked by its bits."""
    latent = np.full((4, 32, 32), -65504, np.float16)
    latent[3, 31, 7] = odd
    return latent


FRAMES: list[tuple[bytes, Callable[[bytes], Any]]] = [
    (encode_header(RECORD), decode_header),
    (encode_latent(RECORD.latents[0]), decode_latent),
    (encode_scores(SCORES), decode_scores),
]
frames = pytest.mark.parametrize(("frame", "decode"), FRAMES, ids=["header", "latent", "scores"])


def sealed(magic: bytes, body: bytes) -> bytes:
    """A frame with a right checksum, whatever its body."""
    return struct.pack("<3sBI", magic, 2, zlib.crc32(body)) + body


def latent_frame(code: int, shape: tuple[int, int, int], raw: bytes, zero: int = 0) -> bytes:
    return sealed(b"FTL", struct.pack("<BBHHH", code, zero, *shape) + raw)


@given(records())
@settings(max_examples=60, deadline=None)
def test_a_record_comes_back_equal(record: Record) -> None:
    found = decode_record(encode_record(record))
    assert encode_record(found) == encode_record(record)
    assert all(map(np.array_equal, found.latents, record.latents))
    assert (found.record_id, found.prompt, found.seed) == (
        record.record_id,
        record.prompt,
        record.seed,
    )


@given(rewards)
@settings(deadline=None)
def test_scores_come_back_equal(values: dict[str, tuple[float, ...]]) -> None:
    assert decode_scores(encode_scores(Scores(values))).rewards == values


@given(latents)
@settings(max_examples=40, deadline=None)
def test_a_latent_that_is_not_contiguous_comes_back_equal(latent: np.ndarray) -> None:
    turned = latent.transpose(0, 2, 1)
    assert np.array_equal(decode_latent(encode_latent(turned)), turned)


def test_a_decoded_latent_is_a_view_that_cannot_be_written() -> None:
    assert not decode_latent(encode_latent(RECORD.latents[0])).flags.writeable


@frames
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_mutated_frame_is_always_refused(
    frame: bytes, decode: Callable[[bytes], Any], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(frame)))
    stop = data.draw(st.integers(start, len(frame)))
    mutated = frame[:start] + data.draw(st.binary(max_size=12)) + frame[stop:]
    if mutated != frame:
        with pytest.raises(CodecError):
            decode(mutated)


@frames
def test_every_single_bit_matters(frame: bytes, decode: Callable[[bytes], Any]) -> None:
    for bit in range(8 * len(frame)):
        mutated = bytearray(frame)
        mutated[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            decode(bytes(mutated))


@frames
def test_every_truncated_frame_is_refused(frame: bytes, decode: Callable[[bytes], Any]) -> None:
    for length in range(len(frame)):
        with pytest.raises(CodecError):
            decode(frame[:length])


@frames
@given(noise=st.binary(max_size=200))
@settings(deadline=None)
def test_noise_is_refused(frame: bytes, decode: Callable[[bytes], Any], noise: bytes) -> None:
    with pytest.raises(CodecError):
        decode(noise)


@frames
def test_another_version_is_named(frame: bytes, decode: Callable[[bytes], Any]) -> None:
    with pytest.raises(CodecError, match="version 1"):
        decode(frame[:3] + b"\x01" + frame[4:])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize(("magic", "decode"), [(b"FTR", decode_header), (b"FTS", decode_scores)])
@given(value=plain | st.lists(plain, min_size=6, max_size=6))
@settings(max_examples=100, deadline=None)
def test_sound_frames_of_anything_raise_one_class_of_error(
    magic: bytes, decode: Callable[[bytes], Any], value: Any
) -> None:
    with contextlib.suppress(CodecError):
        decode(sealed(magic, msgpack.packb(value) or b""))


@pytest.mark.parametrize("magic", [b"FTR", b"FTS"])
@given(body=st.binary(max_size=60))
@settings(deadline=None)
def test_sound_frames_of_noise_are_refused(magic: bytes, body: bytes) -> None:
    with pytest.raises(CodecError):
        {b"FTR": decode_header, b"FTS": decode_scores}[magic](sealed(magic, body + b"\xc1"))


def test_a_deeply_nested_body_is_refused() -> None:
    with pytest.raises(CodecError):
        decode_scores(sealed(b"FTS", b"\x91" * 60_000 + b"\x90"))


def test_a_body_that_promises_a_huge_list_is_refused() -> None:
    with pytest.raises(CodecError):
        decode_scores(sealed(b"FTS", b"\xdd\xff\xff\xff\xff"))


def test_an_oversized_header_is_refused_before_it_is_read() -> None:
    with pytest.raises(CodecError, match="bytes"):
        decode_header(sealed(b"FTR", bytes(2**17)))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(latent_frame(2, (1, 1, 1), b"\0\0"), id="element type not allowed"),
        pytest.param(latent_frame(1, (1, 1, 1), b"\0\0", zero=1), id="reserved byte"),
        pytest.param(latent_frame(1, (1, 1, 2), b"\0\0"), id="too short"),
        pytest.param(latent_frame(1, (1, 1, 1), b"\0\0\0\0"), id="too long"),
        pytest.param(latent_frame(1, (0, 1, 1), b""), id="empty axis"),
        pytest.param(latent_frame(1, (65535, 65535, 65535), b""), id="huge shape"),
        pytest.param(latent_frame(1, (1, 1, 1), b"\x00\x7c"), id="infinity"),
        pytest.param(latent_frame(1, (1, 1, 1), b"\x00\x7e"), id="NaN"),
        pytest.param(sealed(b"FTL", b"\x01"), id="ends in its shape"),
    ],
)
def test_a_sound_frame_of_a_wrong_latent_is_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        decode_latent(frame)


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([], id="no reward"),
        pytest.param([["a", [float("nan")]]], id="NaN"),
        pytest.param([["a", [float("inf")]]], id="infinity"),
        pytest.param([["a", [1]]], id="int"),
        pytest.param([["a", [True]]], id="bool"),
        pytest.param([["a", []]], id="no number"),
        pytest.param([["a", [1.0]], ["a", [1.0]]], id="named twice"),
        pytest.param([["a", [1.0]], ["b", [1.0, 2.0]]], id="different lengths"),
        pytest.param([["a b", [1.0]]], id="blank in a name"),
        pytest.param([["a" * 65, [1.0]]], id="long name"),
        pytest.param([[1, [1.0]]], id="name is a number"),
        pytest.param({"a": [1.0]}, id="map"),
    ],
)
def test_a_sound_frame_of_wrong_scores_is_refused(pairs: Any) -> None:
    with pytest.raises(CodecError):
        decode_scores(sealed(b"FTS", msgpack.packb(pairs) or b""))


HEADER = ["0000000007.001", "prompt", 3, 5, [1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, "7.1"),
        (0, "0000000007.001\n"),
        (0, "٠000000007.001"),
        (1, b"bytes"),
        (1, "x" * 8193),
        (2, -1),
        (2, 2**53 + 1),
        (2, True),
        (3, 1.0),
        (3, -1),
        (4, []),
        (4, [2, 1]),
        (4, [1, 1]),
        (4, [1, "2"]),
        (5, [2]),
        (5, []),
        (5, [-1]),
    ],
)
def test_a_sound_record_with_a_wrong_field_is_refused(place: int, value: Any) -> None:
    header = [*HEADER[:place], value, *HEADER[place + 1 :]]
    fields = {**encode_record(RECORD), b"h": sealed(b"FTR", msgpack.packb(header) or b"")}
    with pytest.raises(CodecError):
        decode_record(fields)


@pytest.mark.parametrize(
    "change", [{b"1": None}, {b"2": b""}, {b"n": b"1"}, {b"n": None}, {b"h": None}]
)
def test_a_record_with_missing_or_unknown_fields_is_refused(
    change: dict[bytes, bytes | None],
) -> None:
    fields = {**encode_record(RECORD), **change}
    with pytest.raises(CodecError):
        decode_record({name: data for name, data in fields.items() if data is not None})


def test_latents_of_different_shapes_are_refused() -> None:
    other = encode_latent(np.zeros((1, 2, 2), np.float16))
    with pytest.raises(CodecError, match="differ"):
        decode_record({**encode_record(RECORD), b"1": other})


@given(latents)
@settings(deadline=None)
def test_the_size_of_a_latents_frame_is_known_before_it_is_made(latent: np.ndarray) -> None:
    assert len(encode_latent(latent, ("0000000007.001", 1))) == latent_frame_bytes(latent.size)


@pytest.mark.parametrize(
    "latent",
    [
        np.zeros((1, 2, 2), np.float32),
        np.zeros((2, 2), np.float16),
        np.full((1, 2, 2), np.nan, np.float16),
        large_with(np.nan),
        large_with(-np.inf),
    ],
)
def test_a_wrong_latent_is_not_encoded(latent: np.ndarray) -> None:
    with pytest.raises(ValueError, match="latent"):
        encode_latent(latent)


def test_a_large_latent_of_the_largest_numbers_is_encoded() -> None:
    latent = large_with(65504)
    assert np.array_equal(decode_latent(encode_latent(latent)), latent)


def test_every_bit_pattern_of_fp16_is_finite_for_us_where_it_is_for_numpy() -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 1, 1, 1)
    taken = []
    for latent in patterns:
        try:
            check_latent(latent)
        except ValueError:
            taken.append(False)
        else:
            taken.append(True)
    np.testing.assert_array_equal(taken, np.isfinite(patterns).reshape(-1))
