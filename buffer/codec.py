"""Records as bytes and back. Everything that is not exactly what we wrote is a `CodecError`.

A frame is  magic (3) | format version (1) | CRC-32 of the body (4) | body.
The checksum is not against an attacker: it turns any damage in transit or on disk into an error
instead of a slightly different latent.

    header  b"FTR"  msgpack list of a record's fields, latents excepted
    latent  b"FTL"  dtype code (1), zero (1), C H W (2 each, little endian), raw fp16
    scores  b"FTS"  msgpack list of [name, [float, ...]]

A latent carries its own shape, so a learner reads one slice and nothing else of a trajectory. Its
checksum covers its place too (record id and slot): read from elsewhere, it is refused.
Nothing is unpickled, and no length is believed before it is checked.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from buffer.errors import CodecError
from buffer.records import (
    MAX_STEPS,
    EvictedEntry,
    FailedEntry,
    IndexEntry,
    LogEntry,
    Record,
    Scores,
    check_latent,
    parse_record_id,
)

FORMAT_VERSION = 2
MAX_META_BYTES = 64 * 1024
"""Headers and scores stay far below; a length above is damage."""
MAX_LATENT_BYTES = 256 * 1024 * 1024

_HEADER = b"FTR"
_LATENT = b"FTL"
_SCORES = b"FTS"
_PREFIX = struct.Struct("<3sBI")
_SHAPE = struct.Struct("<BBHHH")
_FP16 = 1
_FP16_DTYPE = np.dtype("<f2")

_COMMITTED = {b"k", b"id", b"h", b"s", b"b", b"q", b"a"}

HEADER_FIELD = b"h"
NUM_SCORED_FIELD = b"n"
"""For the commit script, which refuses a wrong number of rewards."""


def encode_header(record: Record) -> bytes:
    """All fields of a record but its latents."""
    fields = [record.record_id, record.prompt, record.policy_version, record.seed]
    steps = [list(record.steps), list(record.scored)]
    return _seal(_HEADER, _pack([*fields, *steps, record.sampler]))


def decode_header(data: bytes) -> dict[str, Any]:
    """The fields of a record but its latents, as keyword arguments.

    Their types are checked here, their values by the dataclass that is made of them.
    """
    body = _open(_HEADER, data, MAX_META_BYTES)
    fields = _unpack(body)
    if not isinstance(fields, list) or len(fields) != 7:
        raise CodecError("a header needs exactly seven fields")
    identity, prompt, policy_version, seed, steps, scored, sampler = fields
    if type(identity) is not str or type(steps) is not list or type(scored) is not list:
        raise CodecError("a header field has the wrong type")
    ticket, member = _parsed_id(identity)
    _check_packed_alike(fields, body)
    return {
        "record_id": identity,
        "ticket": ticket,
        "member": member,
        "prompt": prompt,
        "policy_version": policy_version,
        "seed": seed,
        "steps": tuple(steps),
        "scored": tuple(scored),
        "sampler": sampler,
    }


def encode_latent(latent: np.ndarray, place: tuple[str, int] = ("", 0)) -> bytes:
    """One finite fp16 array [C, H, W] as a frame that belongs to (record id, slot)."""
    check_latent(latent)
    return _sealed_latent(latent, place)


def decode_latent(data: bytes, place: tuple[str, int] = ("", 0)) -> np.ndarray:
    """The array of a frame of (record id, slot): a read-only view on `data`."""
    latent = _opened_latent(data, place)
    try:
        check_latent(latent)
    except ValueError as error:
        raise CodecError(str(error)) from error
    return latent


def latent_frame_bytes(values: int) -> int:
    """Size of the frame of a latent of so many numbers, C·H·W."""
    return _PREFIX.size + _SHAPE.size + values * _FP16_DTYPE.itemsize


def encode_record(record: Record) -> dict[bytes, bytes]:
    """The fields of a record's hash: header, number of scored latents, one field per latent."""
    latents = {
        str(slot).encode(): _sealed_latent(latent, (record.record_id, slot))
        for slot, latent in enumerate(record.latents)
    }
    count = str(len(record.scored)).encode()
    return {HEADER_FIELD: encode_header(record), NUM_SCORED_FIELD: count, **latents}


def decode_record(fields: Mapping[bytes, bytes]) -> Record:
    """The record of a hash that `encode_record` filled."""
    header = decode_header(fields.get(HEADER_FIELD, b""))
    if len(header["steps"]) > MAX_STEPS:
        raise CodecError("a record has too many steps")
    slots = [str(slot).encode() for slot in range(len(header["steps"]))]
    if set(fields) != {HEADER_FIELD, NUM_SCORED_FIELD, *slots}:
        raise CodecError(f"{header['record_id']}: fields are missing or unknown")
    if fields[NUM_SCORED_FIELD] != str(len(header["scored"])).encode():
        raise CodecError(f"{header['record_id']}: wrong number of scored latents")
    latents = tuple(
        _opened_latent(fields[slot], (header["record_id"], number))
        for number, slot in enumerate(slots)
    )
    return _made(Record, latents=latents, **header)


def encode_scores(scores: Scores) -> bytes:
    """Rewards as a frame, names in order, so that equal scores are equal bytes."""
    pairs = [[name, list(values)] for name, values in sorted(scores.rewards.items())]
    return _seal(_SCORES, _pack(pairs))


def decode_scores(data: bytes) -> Scores:
    """The rewards of a frame."""
    body = _open(_SCORES, data, MAX_META_BYTES)
    pairs = _unpack(body)
    if not isinstance(pairs, list):
        raise CodecError("scores must be a list")
    rewards: dict[str, tuple[float, ...]] = {}
    for pair in pairs:
        if not isinstance(pair, list) or [type(part) for part in pair] != [str, list]:
            raise CodecError("a reward must be a name and its numbers")
        if pair[0] in rewards:
            raise CodecError("a reward is named twice")
        rewards[pair[0]] = tuple(pair[1])
    _check_packed_alike(sorted(pairs), body)
    return _made(Scores, rewards=rewards)


def decode_entry(position: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
    """One entry of the log, whose fields the Lua scripts wrote.

    committed  k=c, id, h=header, s=scores, b=by whom, q=queued and a=committed at, ms
    failed     k=f, id, reason
    evicted    k=e, ids
    """
    kind, names, place = fields.get(b"k"), set(fields), _text(position)
    if kind == b"c" and names == _COMMITTED:
        header, scores = decode_header(fields[b"h"]), decode_scores(fields[b"s"])
        if header["record_id"].encode() != fields[b"id"]:
            raise CodecError(f"log entry {place} is of another record than its header")
        return _made(
            IndexEntry,
            position=place,
            rewards=scores.rewards,
            scorer=_text(fields[b"b"]),
            queued_ms=_milliseconds(fields[b"q"]),
            committed_ms=_milliseconds(fields[b"a"]),
            **header,
        )
    if kind == b"f" and names == {b"k", b"id", b"reason"}:
        identity, reason = _text(fields[b"id"]), _text(fields[b"reason"])
        ticket, member = _parsed_id(identity)
        names_of = {"record_id": identity, "ticket": ticket, "member": member}
        return _made(FailedEntry, position=place, reason=reason, **names_of)
    if kind == b"e" and names == {b"k", b"ids"}:
        gone = tuple(_text(fields[b"ids"]).split(" "))
        return _made(EvictedEntry, position=place, record_ids=gone)
    raise CodecError(f"log entry {place} is of no known kind")


def _sealed_latent(latent: np.ndarray, place: tuple[str, int]) -> bytes:
    """The frame of a latent that is right, as those of a `Record` are; copies its bytes once."""
    shape = _SHAPE.pack(_FP16, 0, *latent.shape)
    raw = np.ascontiguousarray(latent, _FP16_DTYPE).data.cast("B")
    checksum = zlib.crc32(raw, zlib.crc32(shape, _start(place)))
    return b"".join([_PREFIX.pack(_LATENT, FORMAT_VERSION, checksum), shape, raw])


def _opened_latent(data: bytes, place: tuple[str, int]) -> np.ndarray:
    """What a frame holds, its values not looked at."""
    body = _open(_LATENT, data, MAX_LATENT_BYTES, place)
    if len(body) < _SHAPE.size:
        raise CodecError("a latent ends within its shape")
    code, zero, channels, height, width = _SHAPE.unpack_from(body)
    if (code, zero) != (_FP16, 0):
        raise CodecError(f"a latent has the unknown element type {code}")
    if len(body) - _SHAPE.size != channels * height * width * _FP16_DTYPE.itemsize:
        raise CodecError(
            f"a latent of shape {[channels, height, width]} has {len(body) - _SHAPE.size} bytes"
        )
    return np.frombuffer(body, _FP16_DTYPE, offset=_SHAPE.size).reshape(channels, height, width)


def _seal(magic: bytes, body: bytes) -> bytes:
    return _PREFIX.pack(magic, FORMAT_VERSION, zlib.crc32(body)) + body


def _start(place: tuple[str, int]) -> int:
    """What a checksum begins with, so that it covers the place; 0 for a frame without one."""
    return zlib.crc32(f"{place[0]}/{place[1]}".encode()) if place[0] else 0


def _open(
    magic: bytes, data: bytes, max_bytes: int, place: tuple[str, int] = ("", 0)
) -> memoryview:
    """The body of a sound frame."""
    if not _PREFIX.size <= len(data) <= max_bytes:
        raise CodecError(f"a frame of {len(data)} bytes; {_PREFIX.size} to {max_bytes} expected")
    found, version, checksum = _PREFIX.unpack_from(data)
    if found != magic:
        raise CodecError(f"expected a frame {magic.decode()}, found {found!r}")
    if version != FORMAT_VERSION:
        raise CodecError(f"frame version {version}; this program reads {FORMAT_VERSION}")
    body = memoryview(data)[_PREFIX.size :]
    if zlib.crc32(body, _start(place)) != checksum:
        raise CodecError(f"a frame {magic.decode()} is damaged or misplaced: its checksum differs")
    return body


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None
    return packed


def _unpack(body: memoryview) -> Any:
    try:
        return msgpack.unpackb(body, raw=False, ext_hook=_refuse_extension)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise CodecError(f"not msgpack: {error}") from error


def _check_packed_alike(value: Any, body: memoryview) -> None:
    """One value has one form in bytes: another is not what we wrote."""
    try:
        packed = _pack(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(f"a value that is never packed: {error}") from error
    if packed != body:
        raise CodecError("a value is packed in another way than ours")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def _made(kind: type, **fields: Any) -> Any:
    """`kind(**fields)`, whose own checks speak as `CodecError`."""
    try:
        return kind(**fields)
    except (ValueError, TypeError) as error:
        raise CodecError(str(error)) from error


def _parsed_id(identity: str) -> tuple[int, int]:
    try:
        return parse_record_id(identity)
    except ValueError as error:
        raise CodecError(str(error)) from error


def _milliseconds(data: bytes) -> int:
    if not data.isdigit() or len(data) > 15 or (len(data) > 1 and data[:1] == b"0"):
        raise CodecError(f"not a time in milliseconds: {data[:40]!r}")
    return int(data)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CodecError("text is not UTF-8") from error
