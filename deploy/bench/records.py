"""Codec and index: records to bytes and back, and log entries into the learner's table."""

from collections.abc import Iterator

import msgpack
import numpy as np

from buffer.codec import decode_record, encode_record
from buffer.index import LogIndex
from buffer.records import IndexEntry, Record, record_id
from deploy.bench.timing import Way, Work, again_and_again

SHAPES = ((4, 8, 8), (4, 64, 64), (4, 128, 128))
"""Latents of the shapes world, of SD 1.5 and of SDXL."""
GROUP = 6
STEPS = (1, 2)


def new_group(ticket: int, shape: tuple[int, int, int]) -> list[Record]:
    """A ticket's group with a latent of every step; the values are noise, which no codec packs."""
    noise = np.random.default_rng(0).standard_normal((GROUP, len(STEPS), *shape))
    latents = noise.astype(np.float16)
    return [
        Record(
            record_id=record_id(ticket, member),
            ticket=ticket,
            member=member,
            prompt="a red circle left of a blue square",
            policy_version=0,
            seed=ticket,
            steps=STEPS,
            scored=(0, 1),
            latents=tuple(latents[member]),
        )
        for member in range(GROUP)
    ]


def codec() -> Iterator[Work]:
    """Records to bytes and back."""
    for shape in SHAPES:
        record = new_group(0, shape)[0]
        amounts = {"records": 1.0, "MB": megabytes(1, shape)}
        yield Work(
            f"encode {label(shape)}",
            [
                Way("fleetune", again_and_again(lambda r=record: encode_record(r))),
                Way("msgpack, no checks", again_and_again(lambda r=record: _packed(r))),
                Way("tobytes alone", again_and_again(lambda r=record: _raw(r))),
            ],
            amounts,
        )
        fields, packed, raw = encode_record(record), _packed(record), _raw(record)
        yield Work(
            f"decode {label(shape)}",
            [
                Way("fleetune", again_and_again(lambda f=fields: decode_record(f))),
                Way("msgpack, no checks", again_and_again(lambda p=packed: _unpacked(p))),
                Way("frombuffer alone", again_and_again(lambda r=raw, s=shape: _arrays(r, s))),
            ],
            amounts,
        )


def index() -> Iterator[Work]:
    """Log entries into the learner's table, and its groups."""
    entries = [_entry(ticket, member) for ticket in range(1000) for member in range(GROUP)]
    parts = [entries[i : i + 1000] for i in range(0, len(entries), 1000)]

    def fold() -> LogIndex:
        table = LogIndex(group_size=GROUP)
        for part in parts:
            table.extend(part)
        return table

    yield Work("fold the log", [Way("fleetune", again_and_again(fold))], {"entries": len(entries)})
    table = fold()
    ways = [Way("fleetune", again_and_again(table.groups))]
    yield Work("table of groups", ways, {"groups": len(entries) / GROUP})


def label(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def megabytes(records: float, shape: tuple[int, int, int], slices: int = len(STEPS)) -> float:
    """Of float16 latents."""
    return records * slices * int(np.prod(shape)) * 2 / 1e6


def _packed(record: Record) -> bytes:
    fields = [record.record_id, record.prompt, record.seed, record.steps]
    packed = msgpack.packb([*fields, [[z.shape, z.tobytes()] for z in record.latents]])
    assert packed is not None
    return packed


def _unpacked(packed: bytes) -> list[np.ndarray]:
    latents = msgpack.unpackb(packed)[-1]
    return [np.frombuffer(raw, np.float16).reshape(shape) for shape, raw in latents]


def _raw(record: Record) -> list[bytes]:
    return [z.tobytes() for z in record.latents]


def _arrays(raw: list[bytes], shape: tuple[int, ...]) -> list[np.ndarray]:
    return [np.frombuffer(each, np.float16).reshape(shape) for each in raw]


def _entry(ticket: int, member: int) -> IndexEntry:
    return IndexEntry(
        position=f"{ticket + 1}-{member}",
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt="a red circle left of a blue square",
        policy_version=0,
        seed=ticket,
        steps=STEPS,
        scored=(0, 1),
        rewards={"binding": (0.5, 0.75)},
    )
