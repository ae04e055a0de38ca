"""What a sample costs whoever serves all of a run, however many came before it.

One process takes groups through their whole life, in the order in which a run's processes do: lease
and put, claim and commit, tail, fold, count and admit. Timed is processor time, which waiting for
a busy machine does not add to: of this process by part, and of the server as it counts its own.
Latents are tiny, as a cost by the byte is no cost by the record.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from buffer.admission import limit_by_window
from buffer.codec import encode_record, encode_scores
from buffer.index import LogIndex
from buffer.records import Record, Scores, record_id
from buffer.redis_link import RedisLink, stream_entries
from buffer.redis_replay import RedisReplay, ReplaySettings
from deploy.bench.records import GROUP, new_group
from deploy.bench.timing import Row, spread

SERVING: tuple[str, ...] = ("redis", "learner")
"""What one server and one process do for all samplers; the rest grows with the fleets."""
PARTS: tuple[str, ...] = (*SERVING, "sampler", "reward server")
_SHAPE = (4, 2, 2)
_SCORES = Scores({"reward": (0.5, 0.75)})
_LEASE_S = 600.0
_BATCH = 10
"""Groups that are claimed, committed and read together: a decode of 60 pictures."""
_FILLED = 50
_REFERENCE = 10_000


class CostedRun:
    """A run whose sampler, reward server and learner take turns in this process.

    Args:
        capacity: records that the replay keeps, whatever was issued.
    """

    def __init__(self, url: str, name: str, *, capacity: int) -> None:
        self._replay = RedisReplay.connect(
            ReplaySettings(url=url, run=name, capacity_records=capacity)
        )
        self._link = RedisLink(url, name, timeout_s=60.0, outage_s=0.0)
        self._capacity = capacity
        self._index = LogIndex(group_size=GROUP)
        self._group = new_group(0, _SHAPE)
        self.issued = 0

    def fill(self, records: int) -> None:
        """Issues so many in all as quickly as it can: the same scripts, many in a round trip."""
        while self.issued < records:
            groups = self._next_groups(_FILLED)
            self._admit()
            self._link.ask_each(lambda pipe, groups=groups: self._put_all(pipe, groups))
            self._commit_all(len(groups) * GROUP)
            self._learn()

    def cost(self, groups: int) -> dict[str, float]:
        """Microseconds of processor time a record, by part, of the next so many groups."""
        spent_s = dict.fromkeys(PARTS, 0.0)
        before_s = server_s(self._link)
        for _ in range(groups // _BATCH):
            with _timed(spent_s, "learner"):
                self._admit()
            with _timed(spent_s, "sampler"):
                self._sample(self._next_groups(_BATCH))
            with _timed(spent_s, "reward server"):
                self._score(_BATCH * GROUP)
            with _timed(spent_s, "learner"):
                self._learn()
        spent_s["redis"] = server_s(self._link) - before_s
        return {part: 1e6 * s / (groups * GROUP) for part, s in spent_s.items()}

    def close(self) -> None:
        """Deletes the run."""
        self._replay.erase()
        self._replay.close()
        self._link.close()

    def _next_groups(self, count: int) -> list[list[Record]]:
        first = self.issued // GROUP
        self.issued += count * GROUP
        return [
            [
                replace(record, record_id=record_id(ticket, record.member), ticket=ticket)
                for record in self._group
            ]
            for ticket in range(first, first + count)
        ]

    def _admit(self) -> None:
        finished = self._replay.counters().progress
        self._replay.admit(
            limit=limit_by_window(num_finished=finished, max_open=_FILLED), policy_version=0
        )

    def _sample(self, groups: Sequence[Sequence[Record]]) -> None:
        for records in groups:
            ticket = self._replay.lease_ticket("sampler", lease_s=_LEASE_S)
            assert ticket is not None
            assert self._replay.put_group(ticket.number, records)

    def _score(self, records: int) -> None:
        claimed = self._replay.claim("server", max_records=records, block_s=5.0, lease_s=_LEASE_S)
        assert self._replay.commit([(each.record_id, _SCORES) for each in claimed]) == records

    def _learn(self) -> None:
        while entries := self._replay.tail(self._index.position, max_entries=1000):
            self._index.extend(entries)
        assert len(self._index) <= self._capacity

    def _put_all(self, pipe: Any, groups: Sequence[Sequence[Record]]) -> None:
        for records in groups:
            ticket = records[0].ticket
            self._link.queue(pipe, "lease", f"filler/{ticket}", int(1000 * _LEASE_S), 0, 1)
            words: list[str | int] = [ticket]
            for record in records:
                staged = self._link.record_key(f"staged:{record.record_id}")
                fields = encode_record(record)
                pipe.hset(staged, mapping=fields)
                words += [record.record_id, staged, sum(map(len, fields.values()))]
            self._link.queue(pipe, "put", *words)

    def _commit_all(self, records: int) -> None:
        queue = self._link.key("pending")
        answer: Any = self._link.client.xreadgroup("scorers", "filler", {queue: ">"}, count=records)
        words = [
            word
            for _, fields in stream_entries(answer)
            for word in (fields[b"id"], 2, encode_scores(_SCORES))
        ]
        assert self._link.run("commit", self._capacity, 0, "oldest", "bench", *words) == records


def costs(
    url: str,
    sizes: Sequence[int],
    *,
    capacity: int,
    groups: int,
    repeats: int,
    say: Callable[[str], object],
) -> Iterator[tuple[int, list[Row], dict[str, float]]]:
    """At every size: rows, and medians by part, of what a sample costs.

    Beside each a run that has only begun takes turns with the large one, and ratios are to it, so
    that a slow minute of the machine is no growth.
    """
    run = CostedRun(url, "large", capacity=capacity)
    for size in sizes:
        run.fill(size)
        beside = CostedRun(url, f"beside-{size}", capacity=capacity)
        beside.fill(min(_REFERENCE, max(sizes)))
        large: list[dict[str, float]] = []
        small: list[dict[str, float]] = []
        for _ in range(repeats):
            large.append(run.cost(groups))
            small.append(beside.cost(groups))
        beside.close()
        say(f"{size:,} records: {_told(large)}; a run of {_REFERENCE:,} beside it: {_told(small)}")
        work = f"a sample after {size:,}"
        rows = [_row(work, part, [part], large, small) for part in PARTS]
        rows.append(_row(work, " + ".join(SERVING), SERVING, large, small))
        yield size, rows, {row.way: row.rate["median"] for row in rows}
    run.close()


def lease_cost(url: str, held: int, *, leases: int, repeats: int) -> Row:
    """Of the server, for one more lease and its return while so many others are held."""
    replay = RedisReplay.connect(
        ReplaySettings(url=url, run=f"held-{held}", capacity_records=GROUP)
    )
    link = RedisLink(url, f"held-{held}", timeout_s=60.0, outage_s=0.0)
    replay.admit(limit=held + 1, policy_version=0)
    for _ in range(held):
        assert replay.lease_ticket("holder", lease_s=_LEASE_S) is not None
    costs_us = []
    for _ in range(repeats):
        before_s = server_s(link)
        for _ in range(leases):
            ticket = replay.lease_ticket("sampler", lease_s=_LEASE_S)
            assert ticket is not None
            replay.return_ticket(ticket)
        costs_us.append(1e6 * (server_s(link) - before_s) / leases)
    replay.erase()
    replay.close()
    link.close()
    return Row(f"a lease beside {held:,}", "redis", "µs CPU", spread(costs_us), None)


def server_s(link: RedisLink) -> float:
    """Processor seconds that the server has used."""
    used: Any = link.client.info("cpu")
    return used["used_cpu_user"] + used["used_cpu_sys"]


def _row(
    work: str,
    way: str,
    parts: Sequence[str],
    large: Sequence[Mapping[str, float]],
    small: Sequence[Mapping[str, float]],
) -> Row:
    ours, others = (
        np.array([sum(cost[part] for part in parts) for cost in measured])
        for measured in (large, small)
    )
    return Row(work, way, "µs CPU", spread(ours), spread(ours / others))


def _told(measured: Sequence[Mapping[str, float]]) -> str:
    medians = {part: np.median([cost[part] for cost in measured]) for part in PARTS}
    return ", ".join(f"{part} {us:.0f} µs" for part, us in medians.items())


@contextmanager
def _timed(spent_s: dict[str, float], part: str) -> Iterator[None]:
    begun = time.process_time()
    yield
    spent_s[part] += time.process_time() - begun
