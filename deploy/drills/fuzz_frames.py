"""Damaged frames of the codec: each is refused with CodecError, or still says what is in it.

Every damage comes from the seed, so a seed makes the same frames again.
"""

import logging
import random
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from buffer import codec
from buffer.errors import CodecError
from buffer.records import IndexEntry, Record, Scores, record_id

log = logging.getLogger(__name__)
HANG_S = 20.0
"""A call that takes longer counts as a crash."""
_PREFIX = struct.Struct("<3sBI")
Fields = dict[bytes, bytes]


def fuzz_frames(count: int, seed: int) -> Counter[str]:
    """Decodes damaged frames; counts what became of them."""
    figures: Counter[str] = Counter(frames=count)
    rng = random.Random(seed)
    kinds = list(_CODECS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        make, decode, again = _CODECS[kind]
        damaged = _damaged(make(rng), rng)
        begun = time.monotonic()
        try:
            value = decode(damaged)
        except CodecError:
            figures["refused"] += 1
        except Exception:
            figures["crashes"] += 1
            log.exception("%s, frame %d of seed %d: %r", kind, number, seed, damaged)
        else:
            if again(value) != damaged:
                figures["wrongly_accepted"] += 1
                log.error("%s, frame %d of seed %d: %r as %r", kind, number, seed, damaged, value)
        if time.monotonic() - begun > HANG_S:
            figures["crashes"] += 1
            log.error("%s, frame %d of seed %d took too long", kind, number, seed)
    return figures


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three damages, of anything."""
    for _ in range(rng.randint(1, 3)):
        if len(data) > _PREFIX.size and rng.random() < 0.5:
            data = _with_right_checksum(data, rng)
        else:
            data = rng.choice(_DAMAGES)(data, rng)
    return data


def _record(rng: random.Random) -> Record:
    count, shape = rng.randint(1, 3), (rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 3))
    steps = tuple(sorted(rng.sample(range(1, 60), count)))
    values = np.random.default_rng(rng.getrandbits(32)).standard_normal((count, *shape))
    ticket, member = rng.randrange(10**6), rng.randrange(16)
    return Record(
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt="".join(rng.choices("aé ☃z", k=rng.randint(0, 12))),
        policy_version=rng.randrange(2**30),
        seed=rng.getrandbits(64),
        steps=steps,
        scored=tuple(sorted(rng.sample(range(count), rng.randint(1, count)))),
        latents=tuple(values.astype(np.float16)),
    )


def _scores(rng: random.Random, count: int) -> Scores:
    names = rng.sample(["aesthetic", "jpeg-size", "a", "x.y:z_1"], rng.randint(1, 3))
    return Scores({name: tuple(rng.gauss(0, 9) for _ in range(count)) for name in names})


def _committed(rng: random.Random) -> Fields:
    record = _record(rng)
    return {
        b"k": b"c",
        b"id": record.record_id.encode(),
        b"h": codec.encode_header(record),
        b"s": codec.encode_scores(_scores(rng, len(record.scored))),
        b"b": rng.choice(["", "reward-1.0", "ü"]).encode(),
        b"q": str(rng.randint(0, 2**45)).encode(),
        b"a": str(rng.randint(0, 2**45)).encode(),
    }


def _entry_again(entry: Any) -> Fields:
    assert isinstance(entry, IndexEntry)
    shape = np.zeros((len(entry.steps), 1, 1, 1), np.float16)
    names = ("record_id", "ticket", "member", "prompt", "policy_version", "seed", "steps", "scored")
    fields = {name: getattr(entry, name) for name in (*names, "sampler")}
    record = Record(latents=tuple(shape), **fields)
    return {
        b"k": b"c",
        b"id": entry.record_id.encode(),
        b"h": codec.encode_header(record),
        b"s": codec.encode_scores(Scores(entry.rewards)),
        b"b": entry.scorer.encode(),
        b"q": str(entry.queued_ms).encode(),
        b"a": str(entry.committed_ms).encode(),
    }


def _header_again(fields: dict[str, Any]) -> bytes:
    listed = [fields[name] for name in ("record_id", "prompt", "policy_version", "seed")]
    steps = [list(fields["steps"]), list(fields["scored"])]
    return _sealed(b"FTR", _packed([*listed, *steps, fields["sampler"]]))


def _packed(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None
    return packed


_CODECS: dict[str, tuple[Callable[[random.Random], Any], Callable[[Any], Any], Any]] = {
    "header": (lambda r: codec.encode_header(_record(r)), codec.decode_header, _header_again),
    "latent": (
        lambda r: codec.encode_latent(_record(r).latents[0]),
        codec.decode_latent,
        codec.encode_latent,
    ),
    "scores": (
        lambda r: codec.encode_scores(_scores(r, r.randint(1, 3))),
        codec.decode_scores,
        codec.encode_scores,
    ),
    "record": (
        lambda r: codec.encode_record(_record(r)),
        codec.decode_record,
        codec.encode_record,
    ),
    "entry": (_committed, lambda fields: codec.decode_entry(b"17-0", fields), _entry_again),
}


def _damaged(data: bytes | Fields, rng: random.Random) -> bytes | Fields:
    """One to three damages, of a frame or of one field of several."""
    if isinstance(data, dict):
        fields = dict(data)
        name = rng.choice(list(fields))
        choice = rng.random()
        if choice < 0.1:
            del fields[name]
        elif choice < 0.2:
            fields[rng.choice([b"x", b"7", b"", name + b"0"])] = fields[name]
        elif choice < 0.3:
            fields[name] = fields[rng.choice(list(fields))]
        else:
            fields[name] = damaged_bytes(fields[name], rng)
        return fields
    return damaged_bytes(data, rng)


def _with_right_checksum(data: bytes, rng: random.Random) -> bytes:
    """Damage within, under a checksum that fits: what a broken writer would send."""
    magic, body = data[:3], data[_PREFIX.size :]
    if rng.random() < 0.5 and magic in (b"FTR", b"FTS"):
        try:
            body = _packed(_other_value(msgpack.unpackb(body), rng))
        except (ValueError, TypeError, msgpack.UnpackException):
            body = rng.choice(_DAMAGES)(body, rng)
    else:
        body = rng.choice(_DAMAGES)(body, rng)
    return _sealed(magic, body)


def _other_value(value: Any, rng: random.Random) -> Any:
    """A value with something in it replaced, doubled or missing."""
    if isinstance(value, list) and value and rng.random() < 0.9:
        at, choice, copy = rng.randrange(len(value)), rng.random(), list(value)
        if choice < 0.1:
            del copy[at]
        elif choice < 0.2:
            copy.insert(at, copy[at])
        else:
            copy[at] = _other_value(copy[at], rng)
        return copy
    odd = [None, True, -1, 0, 2**64 - 1, 2**53 + 1, 1.5, float("nan"), float("inf"), "", "é" * 9]
    return rng.choice([*odd, [], [1, 1], {"a": 1}, b"raw", "0000000001.000", "x" * 9000])


def _sealed(magic: bytes, body: bytes) -> bytes:
    return _PREFIX.pack(magic, codec.FORMAT_VERSION, zlib.crc32(body)) + body


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]


def _double(data: bytes, rng: random.Random) -> bytes:
    start = rng.randint(0, len(data))
    return data + data[start:]


def _random(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(0, 64))


def _other_version(data: bytes, rng: random.Random) -> bytes:
    return data[:3] + bytes([rng.randrange(256)]) + data[4:]


def _other_magic(data: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"FTR", b"FTL", b"FTS", b"\x80\x04\x95"]) + data[3:]


_DAMAGES = (_flip, _flip, _cut, _insert, _double, _random, _other_version, _other_magic)
