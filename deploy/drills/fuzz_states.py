"""Damaged keys of a run: every operation of the replay answers or refuses, and lets nothing in.

Every damage comes from the seed, so a seed makes the same states again.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from buffer import codec
from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayError
from buffer.keys import key
from buffer.records import START, IndexEntry, Record, Scores, record_id
from buffer.redis_replay import RedisReplay, ReplaySettings
from deploy.drills.fuzz_frames import HANG_S, damaged_bytes

log = logging.getLogger(__name__)


def fuzz_states(count: int, seed: int) -> Counter[str]:
    """Works with damaged keys; counts what became of it."""
    figures: Counter[str] = Counter(states=count)
    rng = random.Random(seed + 1)
    with EmbeddedServer() as server:
        client = connect(server.url, timeout_s=HANG_S)
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
    return ReplaySettings(url=url, run=run, capacity_records=6, timeout_s=HANG_S)


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
            client.hset(name, field, damaged_bytes(fields[field], rng))
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
        if time.monotonic() - begun > HANG_S:
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
