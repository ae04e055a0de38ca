"""`python -m deploy.drills.fuzz`: damaged bytes and damaged keys, by the million.

    --frames N    damaged frames to decode (default 1,000,000)
    --states N    damaged states of a run's keys in Redis to work with (default 10,000)
    --seed S

A frame is a header, a latent, scores, a whole record or an entry of the log, damaged by a few of:
flipped, cut, doubled, moved or random bytes, another magic or version, and, with its checksum made
right again, another length, type, name or number inside. A state is a run with records at every
stage of their life, of which keys or fields are gone, of another type, of another run, cut or
random; then every operation of the replay is called. The last line of stdout is JSON:

    frames, states     that were tried
    refused            frames that were refused with CodecError; the others were still right
    crashes            anything raised that is no documented error, and calls that hung
    wrongly_accepted   values that came out and are not what stands in the bytes, and records that
                       came out and are not those that were put in

Exit status 0 without crashes and wrong acceptances, else 1.
"""

import argparse
import json
import logging
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np

from buffer import codec
from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import CodecError, ReplayError
from buffer.keys import key
from buffer.records import START, IndexEntry, Record, Scores, record_id
from buffer.redis_replay import RedisReplay, ReplaySettings

log = logging.getLogger("deploy.drills.fuzz")
_HANG_S = 20.0
_PREFIX = struct.Struct("<3sBI")
Fields = dict[bytes, bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.drills.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--states", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(message)s")
    begun = time.monotonic()
    figures = fuzz_frames(options.frames, options.seed)
    figures.update(fuzz_states(options.states, options.seed))
    named = ("frames", "states", "refused", "crashes", "wrongly_accepted")
    line: dict[str, float] = {name: figures[name] for name in named}
    line["wall_s"] = round(time.monotonic() - begun, 1)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if not figures["crashes"] and not figures["wrongly_accepted"] else 1


# Frames


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
        if time.monotonic() - begun > _HANG_S:
            figures["crashes"] += 1
            log.error("%s, frame %d of seed %d took too long", kind, number, seed)
    return figures


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
    }


def _entry_again(entry: Any) -> Fields:
    assert isinstance(entry, IndexEntry)
    shape = np.zeros((len(entry.steps), 1, 1, 1), np.float16)
    names = ("record_id", "ticket", "member", "prompt", "policy_version", "seed", "steps", "scored")
    record = Record(latents=tuple(shape), **{name: getattr(entry, name) for name in names})
    return {
        b"k": b"c",
        b"id": entry.record_id.encode(),
        b"h": codec.encode_header(record),
        b"s": codec.encode_scores(Scores(entry.rewards)),
    }


def _header_again(fields: dict[str, Any]) -> bytes:
    listed = [fields[name] for name in ("record_id", "prompt", "policy_version", "seed")]
    return _sealed(b"FTR", _packed([*listed, list(fields["steps"]), list(fields["scored"])]))


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
            fields[name] = _damaged_bytes(fields[name], rng)
        return fields
    return _damaged_bytes(data, rng)


def _damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        if len(data) > _PREFIX.size and rng.random() < 0.5:
            data = _with_right_checksum(data, rng)
        else:
            data = rng.choice(_DAMAGES)(data, rng)
    return data


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


# States


def fuzz_states(count: int, seed: int) -> Counter[str]:
    """Works with damaged keys; counts what became of it."""
    figures: Counter[str] = Counter(states=count)
    rng = random.Random(seed + 1)
    with EmbeddedServer() as server:
        client = connect(server.url, timeout_s=_HANG_S)
        template, originals = _template(server.url)
        for number in range(count):
            run = f"fuzz-{number}"
            _copy_run(client, template, run)
            damage = _damage_keys(client, run, rng)
            replay = RedisReplay(_settings(server.url, run))
            for name, odd in _use(replay, originals, rng):
                figures[odd] += 1
                log.error("%s: %s, state %d of seed %d: %s", odd, name, number, seed, damage)
            replay.erase()
            replay.close()
        client.close()
    return figures


def _settings(url: str, run: str) -> ReplaySettings:
    return ReplaySettings(url=url, run=run, capacity_records=6, timeout_s=_HANG_S)


def _template(url: str) -> tuple[str, dict[str, Record]]:
    """A run with records at every stage of their life, and what was put."""
    replay = RedisReplay.connect(_settings(url, "template"))
    rng, originals = random.Random(0), {}
    replay.admit(limit=8, policy_version=0)
    for ticket in range(6):
        assert replay.lease_ticket("sampler", lease_s=600) is not None
        group = [_member(rng, ticket, member) for member in range(2)]
        if ticket < 5:
            replay.put_group(ticket, group)
        originals.update({record.record_id: record for record in group})
    claimed = replay.claim("server", max_records=8, block_s=0, lease_s=600)
    replay.commit([(r.record_id, Scores({"a": (1.0, 2.0)})) for r in claimed[:4]])
    replay.fail(claimed[4].record_id, "boom", retry=False)
    replay.fail(claimed[5].record_id, "boom", retry=True)
    replay.set_priorities({claimed[0].record_id: 2.0}, generation=1)
    replay.close()
    return "template", originals


def _member(rng: random.Random, ticket: int, member: int) -> Record:
    values = np.random.default_rng(rng.getrandbits(32)).standard_normal((2, 4, 2, 2))
    return Record(
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt=f"prompt {ticket}",
        policy_version=0,
        seed=ticket,
        steps=(1, 2),
        scored=(0, 1),
        latents=tuple(values.astype(np.float16)),
    )


def _copy_run(client: Any, source: str, run: str) -> None:
    prefix = key(source, "")
    names = [name.decode() for name in client.scan_iter(key(source, "*"), count=1000)]
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.copy(name, key(run, "") + name.removeprefix(prefix))
    pipe.execute()


def _damage_keys(client: Any, run: str, rng: random.Random) -> str:
    """One to three damages of a run's keys, told in words."""
    told = []
    for _ in range(rng.randint(1, 3)):
        names = sorted(client.scan_iter(key(run, "*"), count=1000))
        if not names:
            break
        name = rng.choice(names)
        told.append(f"{rng.choice(_KEY_DAMAGES)(client, name, rng)} of {name.decode()}")
    return "; ".join(told)


def _lose_key(client: Any, name: bytes, rng: random.Random) -> str:
    client.delete(name)
    return "loss"


def _change_type(client: Any, name: bytes, rng: random.Random) -> str:
    client.delete(name)
    rng.choice(
        [
            lambda: client.set(name, rng.randbytes(9)),
            lambda: client.rpush(name, b"a", b"b"),
            lambda: client.hset(name, mapping={b"a": b"b", b"\xff": b""}),
            lambda: client.zadd(name, {b"a": 1.5, b"\xff": -3}),
            lambda: client.xadd(name, {b"a": b"b"}),
            lambda: client.sadd(name, b"a"),
        ]
    )()
    return "another type"


def _change_content(client: Any, name: bytes, rng: random.Random) -> str:
    kind = client.type(name)
    odd = rng.choice([b"", b"abc", b"-1", b"1e400", b"nan", b"\xff\xfe", b"99999999999.000"])
    if kind == b"hash":
        fields = client.hgetall(name)
        field = rng.choice(sorted(fields))
        choice = rng.random()
        if choice < 0.3:
            client.hdel(name, field)
            return f"field {field!r} lost"
        if choice < 0.6:
            client.hset(name, field, _damaged_bytes(fields[field], rng))
            return f"field {field!r} damaged"
        if choice < 0.8:
            client.hset(name, field, odd)
            return f"field {field!r} is {odd!r}"
        client.hset(name, odd, fields[field])
        return f"field {odd!r} added"
    if kind == b"zset":
        member = rng.choice(client.zrange(name, 0, -1))
        if rng.random() < 0.5:
            client.zadd(name, {odd: rng.choice([-1.0, 0.5, 1e300, float("inf")])})
            return f"member {odd!r} added"
        client.zadd(name, {member: rng.choice([-1.0, 0.5, 1e300, float("-inf")])})
        return f"score of {member!r} changed"
    if kind == b"stream":
        fields = rng.choice([{b"id": odd}, {b"k": b"c", b"id": odd}, {b"x": odd}, {b"k": b"e"}])
        client.xadd(name, fields)
        return f"entry {fields!r} added"
    return _lose_key(client, name, rng)


def _foreign_record(client: Any, name: bytes, rng: random.Random) -> str:
    """Another record's payload under this one's name; other keys are damaged in their content."""
    prefix, _, identity = name.rpartition(b"record:")
    if not prefix:
        return _change_content(client, name, rng)
    others = sorted(set(client.scan_iter(prefix + b"record:*", count=1000)) - {name})
    if not others:
        return _lose_key(client, name, rng)
    client.copy(rng.choice(others), name, replace=True)
    return f"foreign payload {identity.decode()}"


_KEY_DAMAGES = (_lose_key, _change_type, _change_content, _change_content, _foreign_record)


def _use(
    replay: RedisReplay, originals: dict[str, Record], rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Calls everything; yields (operation, 'crashes' or 'wrongly_accepted')."""
    claimed: list[Record] = []

    def claim() -> None:
        claimed.extend(replay.claim("fuzz", max_records=20, block_s=0, lease_s=600))

    def tail() -> Any:
        return replay.tail(START, max_entries=1000)

    slices = [(name, slot) for name in originals for slot in (0, 1)]
    steps: dict[str, Callable[[], Any]] = {
        "counters": replay.counters,
        "claim": claim,
        "lease": lambda: replay.lease_ticket("fuzz", lease_s=600),
        "put": lambda: replay.put_group(5, [originals[record_id(5, m)] for m in range(2)]),
        "claim again": claim,
        "renew": lambda: replay.renew_claims("fuzz", list(originals)),
        "fail": lambda: [
            replay.fail(r.record_id, "odd", retry=rng.random() < 0.5) for r in claimed[:1]
        ],
        "unclaim": lambda: replay.unclaim([r.record_id for r in claimed[1:2]]),
        "commit": lambda: replay.commit(
            [(r.record_id, Scores({"a": (1.0, 2.0)})) for r in claimed[2:]]
        ),
        "tail": tail,
        "read": lambda: replay.read_latents(slices),
        "prioritise": lambda: replay.set_priorities(dict.fromkeys(originals, 0.5), generation=9),
        "priorities": replay.priorities,
        "quarantined": lambda: replay.quarantined(100),
        "release": lambda: replay.release(list(originals)),
        "admit": lambda: replay.admit(limit=20, policy_version=3),
        "skip": lambda: replay.skip_to(9),
        "consume": lambda: replay.consume(4),
        "counters again": replay.counters,
    }
    for name, step in steps.items():
        begun = time.monotonic()
        try:
            found = step()
        except (ReplayError, ValueError):
            continue
        except Exception:
            log.exception("%s", name)
            yield name, "crashes"
            continue
        if time.monotonic() - begun > _HANG_S:
            yield name, "crashes"
        if name == "tail" and any(_is_odd_entry(entry, originals) for entry in found):
            yield name, "wrongly_accepted"
        if name == "read" and any(map(_is_odd_latent(originals), slices, found)):
            yield name, "wrongly_accepted"
    if any(_is_odd_record(record, originals) for record in claimed):
        yield "claim", "wrongly_accepted"


def _is_odd_latent(originals: dict[str, Record]) -> Callable[[tuple[str, int], Any], bool]:
    def is_odd(where: tuple[str, int], latent: Any) -> bool:
        return latent is not None and not np.array_equal(
            latent, originals[where[0]].latents[where[1]]
        )

    return is_odd


def _is_odd_entry(entry: Any, originals: dict[str, Record]) -> bool:
    if not isinstance(entry, IndexEntry):
        return False
    known = originals.get(entry.record_id)
    return known is None or entry.prompt != known.prompt or entry.seed != known.seed


def _is_odd_record(record: Record, originals: dict[str, Record]) -> bool:
    known = originals.get(record.record_id)
    return known is None or codec.encode_record(record) != codec.encode_record(known)


if __name__ == "__main__":
    sys.exit(main())
