"""The same items in five kinds of store, each used in the way that its makers advise.

    fleetune    lease, put and commit; draws over the index, slices by `read_latents`
    redis-py    pipelined HSET and HGET of bare arrays, few bytes a reply
    one reply   the same, a whole batch in one pipeline: the plainest client
    files       one pickled file a trajectory
    reverb      dm-reverb: a trajectory writer, its sampler and its own server

An item is a trajectory of latents, fp16 [S, C, H, W]. Imported by Reverb's own Python too, so that
nothing but NumPy is imported before a store is opened.
"""

from __future__ import annotations

import itertools
import pickle  # noqa: TID251 (what the peer does with its own files)
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_REPLY_BYTES = 256 * 1024
_PROMPT = "a red circle left of a blue square"
GROUP = 8
"""Items that are put together: the members of a ticket."""
TABLES = ("uniform", "prioritised")
_COMMIT = 32
"""Items that are committed together: a small batch of a reward server."""
_REVERB_FLUSH = 32
_REVERB_IN_FLIGHT = 16
"""It fetches so many ahead while the others have their turn; no more, for that is not timed."""


class Store(Protocol):
    """What a client process does with a store.

    `prepare_insert` makes everything that is not the store's work; what it returns is timed.
    """

    def prepare_insert(
        self, first: int, items: Sequence[np.ndarray], *, table: str = TABLES[0]
    ) -> Callable[[], None]:
        """Items numbered from `first`, to be drawn as the table says where a store needs that."""
        ...

    def prepare_sample(self, count: int, table: str, shape: Sequence[int]) -> None:
        """Makes ready to draw from items 0, ..., count - 1 of one shape [S, C, H, W]."""
        ...

    def sample(self, batch: int, rng: np.random.Generator, slots: Sequence[int]) -> int:
        """Draws and reads these slots of `batch` items as arrays; returns their bytes."""
        ...

    def clear(self) -> None:
        """Forgets all items."""
        ...


class Fleetune:
    """The replay of this project."""

    def __init__(self, url: str) -> None:
        from buffer.replay_settings import ReplaySettings
        from buffer.sharded_replay import connect_replay

        settings = ReplaySettings(url=url, run="bench", capacity_records=10**6, timeout_s=60)
        self._replay = connect_replay(settings)
        self._index: Any = None
        self._prioritised = False

    def prepare_insert(
        self, first: int, items: Sequence[np.ndarray], *, table: str = TABLES[0]
    ) -> Callable[[], None]:
        """Tickets are leased, groups put and scores committed, as a run does it."""
        from buffer.records import Scores

        scores = Scores({"reward": (0.5,)})
        self._replay.admit(limit=first + len(items), policy_version=0)
        latents = itertools.cycle(items)

        def insert() -> None:
            """Whole groups, each under its ticket, then all their scores."""
            put: list[str] = []
            for _ in range(len(items) // GROUP):
                ticket = self._replay.lease_ticket("bench", lease_s=60.0)
                assert ticket is not None
                group = [_record(ticket.number, member, next(latents)) for member in range(GROUP)]
                assert self._replay.put_group(ticket.number, group)
                put += [record.record_id for record in group]
                if len(put) >= _COMMIT:
                    self._replay.commit([(record_id, scores) for record_id in put])
                    put.clear()
            self._replay.commit([(record_id, scores) for record_id in put])

        return insert

    def prepare_sample(self, count: int, table: str, shape: Sequence[int]) -> None:
        """Reads the log into an index."""
        from buffer.index import LogIndex
        from buffer.records import START

        self._prioritised = table == TABLES[1]
        self._index = LogIndex(group_size=GROUP)
        while len(self._index) < count:
            after = self._index.position if len(self._index) else START
            self._index.extend(self._replay.tail(after, max_entries=1000, block_s=1.0))
        entries = self._index.entries(range(count))
        self._index.set_priorities({e.record_id: _priority(i) for i, e in enumerate(entries)})

    def sample(self, batch: int, rng: np.random.Generator, slots: Sequence[int]) -> int:
        """By the index, then the slots alone."""
        from buffer.sampling import prioritised, uniform

        if self._prioritised:
            rows = prioritised(self._index.priority, batch, rng)
        else:
            rows = uniform(len(self._index), batch, rng)
        entries = self._index.entries(rows)
        return _bytes(self._replay.read_latents([(e.record_id, s) for e in entries for s in slots]))

    def clear(self) -> None:
        self._replay.erase()
        self._replay = type(self._replay).connect(self._replay.settings)


class Redis:
    """redis-py alone: no leases, counts, queue, checks or log.

    Args:
        url: of a database of its own.
        reply_bytes: of one pipeline's reply; None: a whole batch in one.
    """

    def __init__(self, url: str, reply_bytes: int | None = _REPLY_BYTES) -> None:
        from buffer.connection import connect

        self._client = connect(url, timeout_s=60)
        self._reply_bytes = reply_bytes
        self._count = 0
        self._shape: tuple[int, ...] = ()

    def prepare_insert(
        self, first: int, items: Sequence[np.ndarray], *, table: str = TABLES[0]
    ) -> Callable[[], None]:
        """A hash each, with a field for every latent."""

        def insert() -> None:
            """Some at a time, in one round trip."""
            for start in range(0, len(items), GROUP):
                pipe = self._client.pipeline(transaction=False)
                for i, item in enumerate(items[start : start + GROUP], start=first + start):
                    header = f"{_PROMPT} {i} {item.shape}"
                    latents = {str(s): latent.tobytes() for s, latent in enumerate(item)}
                    pipe.hset(f"raw:{i}", mapping={"h": header, **latents})
                pipe.execute()

        return insert

    def prepare_sample(self, count: int, table: str, shape: Sequence[int]) -> None:
        """Nothing but how many there are, and their shape."""
        self._count = count
        self._shape = tuple(shape[1:])

    def sample(self, batch: int, rng: np.random.Generator, slots: Sequence[int]) -> int:
        """Uniformly; no reply is larger than `reply_bytes`, or one latent."""
        size = int(np.prod(self._shape)) * 2
        most = batch * len(slots) if self._reply_bytes is None else self._reply_bytes // size
        of_item = max(1, min(most, len(slots)))
        names = [f"raw:{i}" for i in rng.choice(self._count, size=batch, replace=False)]
        parts = [slots[at : at + of_item] for at in range(0, len(slots), of_item)]
        wanted = [(name, part) for name in names for part in parts]
        in_one = max(1, most // of_item)
        arrays = []
        for start in range(0, len(wanted), in_one):
            pipe = self._client.pipeline(transaction=False)
            for name, part in wanted[start : start + in_one]:
                pipe.hmget(name, part)
            found = [raw for answer in pipe.execute() for raw in answer]
            arrays += [np.frombuffer(raw, np.float16).reshape(self._shape) for raw in found]
        return _bytes(arrays)

    def clear(self) -> None:
        self._client.flushdb()


class Files:
    """One pickled file a trajectory, as SQDF's reference code keeps them."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._count = 0

    def prepare_insert(
        self, first: int, items: Sequence[np.ndarray], *, table: str = TABLES[0]
    ) -> Callable[[], None]:
        """A file each."""

        def insert() -> None:
            for i, item in enumerate(items, start=first):
                with (self._folder / f"{i}.pkl").open("wb") as file:
                    pickle.dump({"prompt": _PROMPT, "reward": 0.5, "latents": item}, file)

        return insert

    def prepare_sample(self, count: int, table: str, shape: Sequence[int]) -> None:
        """Nothing but how many there are."""
        self._count = count

    def sample(self, batch: int, rng: np.random.Generator, slots: Sequence[int]) -> int:
        """Uniformly; a file is read whole."""
        arrays = []
        for i in rng.choice(self._count, size=batch, replace=False):
            with (self._folder / f"{i}.pkl").open("rb") as file:
                latents = pickle.load(file)["latents"]  # noqa: S301 (this process wrote it)
            arrays += [latents[slot] for slot in slots]
        return _bytes(arrays)

    def clear(self) -> None:
        shutil.rmtree(self._folder)
        self._folder.mkdir()


class Reverb:
    """dm-reverb 0.14 over gRPC: written by its trajectory writer, read as its own dataset."""

    def __init__(self, address: str) -> None:
        import reverb  # pyright: ignore[reportMissingImports]

        self._reverb = reverb
        self._address = address
        self._client = reverb.Client(address)
        self._samples: Iterator[Any] = iter(())

    def prepare_insert(
        self, first: int, items: Sequence[np.ndarray], *, table: str = TABLES[0]
    ) -> Callable[[], None]:
        """An item each, with its priority in the table that is named."""

        def insert() -> None:
            """One after the other, in one stream."""
            with self._client.trajectory_writer(num_keep_alive_refs=1) as writer:
                for i, item in enumerate(items, start=first):
                    writer.append({"latents": item})
                    steps = {"latents": writer.history["latents"][-1:]}
                    writer.create_item(table, _priority(i), steps)
                    if i % _REVERB_FLUSH == 0:
                        writer.flush(block_until_num_items=_REVERB_FLUSH)
                writer.flush()

        return insert

    def prepare_sample(self, count: int, table: str, shape: Sequence[int]) -> None:
        """A dataset of the table, which fetches ahead."""
        import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

        dataset = self._reverb.TrajectoryDataset(
            self._address,
            table,
            dtypes={"latents": tf.float16},
            shapes={"latents": tf.TensorShape([1, *shape])},
            max_in_flight_samples_per_worker=_REVERB_IN_FLIGHT,
        )
        self._samples = dataset.as_numpy_iterator()

    def sample(self, batch: int, rng: np.random.Generator, slots: Sequence[int]) -> int:
        """The next of the dataset, whole."""
        arrays = []
        for _ in range(batch):
            latents = next(self._samples).data["latents"][0]
            arrays += [latents[slot] for slot in slots]
        return _bytes(arrays)

    def clear(self) -> None:
        for table in TABLES:
            self._client.reset(table)


STORES: dict[str, Callable[[str], Store]] = {
    "fleetune": Fleetune,
    "redis-py": Redis,
    "one reply": lambda url: Redis(url, None),
    "files": Files,
    "reverb": Reverb,
}


def serve_reverb(port: int) -> Any:
    """A server with a table for each way of drawing; kept alive by whoever holds it."""
    import reverb  # pyright: ignore[reportMissingImports]

    selectors = (reverb.selectors.Uniform(), reverb.selectors.Prioritized(1.0))
    tables = [
        reverb.Table(
            name=name,
            sampler=selector,
            remover=reverb.selectors.Fifo(),
            max_size=10**6,
            rate_limiter=reverb.rate_limiters.MinSize(1),
        )
        for name, selector in zip(TABLES, selectors, strict=True)
    ]
    return reverb.Server(tables=tables, port=port)


def _record(ticket: int, member: int, latents: np.ndarray) -> Any:
    from buffer.records import Record, record_id

    return Record(
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt=_PROMPT,
        policy_version=0,
        seed=ticket,
        steps=tuple(range(1, len(latents) + 1)),
        scored=(len(latents) - 1,),
        latents=tuple(latents),
    )


def _priority(number: int) -> float:
    return 1.0 + number % 7


def _bytes(arrays: Sequence[np.ndarray | None]) -> int:
    """Of all arrays: a store that has lost one would look quick."""
    assert all(array is not None for array in arrays)
    return sum(array.nbytes for array in arrays if array is not None)
