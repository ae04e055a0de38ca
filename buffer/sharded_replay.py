"""`Replay` over several Redis or Valkey servers that know nothing of each other.

    ticket n, its group and all that becomes of it ─► server n mod the number of servers

Capacity and throughput grow with the servers, and one may be away while the others serve:

| what is asked                                            | of a server that is away           |
|----------------------------------------------------------|------------------------------------|
| anyone: a lease, a claim                                 | nothing                            |
| leases and claims to be renewed, leases to be ended      | nothing: it gives them to nobody   |
| all, again and again: limits to rise, the log, counts    | nothing, for `outage_s`            |
| those that hold it: groups, scores, latents, priorities  | it is waited for, up to `outage_s` |
| all, once: tickets to be skipped, eviction, quarantine   | it is waited for, up to `outage_s` |

A call is atomic on each server and not over all of them. An error of one server is raised when the
others have done their part; like any call it may be sent again.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from buffer.connection import check_connection
from buffer.errors import ReplayUnavailable
from buffer.records import (
    Counters,
    LogEntry,
    Quarantined,
    Record,
    Scores,
    Ticket,
    parse_position,
    parse_record_id,
    places_in,
    position_text,
)
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from buffer.run_owner import Start, started
from buffer.shards import Shards
from buffer.urls import urls_in

T = TypeVar("T")


def connect_replay(
    settings: ReplaySettings, start: Start | None = None
) -> "RedisReplay | ShardedReplay":
    """The replay on the one server that the settings name, or over all that they name.

    Args:
        start: takes the run, so that nobody else goes on with it; None for a tool beside it.
    """
    several = len(urls_in(settings.url)) > 1
    return (ShardedReplay if several else RedisReplay).connect(settings, start)


class ShardedReplay:
    """One process's view of a run's replay; see `buffer.replay.Replay` for what each method means.

    Picklable: another process that unpickles it opens its own connections.

    Args:
        settings: of the whole; `url` names every server.
    """

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings
        clients = [RedisReplay(each) for each in settings.of_shards()]
        self._shards = Shards(clients, outage_s=settings.outage_s)
        self._counters: dict[int, Counters] = {}

    @classmethod
    def connect(cls, settings: ReplaySettings, start: Start | None = None) -> "ShardedReplay":
        """A replay on servers that were checked: each can be used, and holds its part of the run.

        None is taken before all were looked at: whoever is refused at one leaves no trace on the
        others. Of two that begin at one time, the first at the first server goes on.

        Raises:
            ReplayUnfit: among others, where two URLs lead to one server.
        """
        replay = cls(started(settings, start))
        for shard in replay._shards:
            check_connection(shard.settings.url, settings.timeout_s)
            shard.take(start, writes=False)
        for shard in replay._shards:
            shard.take(start)
        return replay

    def __reduce__(self) -> tuple[type["ShardedReplay"], tuple[ReplaySettings]]:
        return ShardedReplay, (self.settings,)

    def __repr__(self) -> str:
        return f"ShardedReplay({', '.join(map(repr, self._shards))})"

    # Tickets

    def admit(self, *, limit: int, policy_version: int) -> None:
        """As `Replay.admit`. A server that is away hears of it when this is called again."""
        self._shards.tell(lambda shard: shard.admit(limit=limit, policy_version=policy_version))

    def skip_to(self, ticket: int) -> None:
        """As `Replay.skip_to`."""
        self._shards.settle_all(lambda shard: shard.skip_to(ticket))

    def lease_ticket(self, owner: str, *, lease_s: float) -> Ticket | None:
        """As `Replay.lease_ticket`: the lowest of one server, and another server each time."""
        return self._shards.first_found(lambda shard: shard.lease_ticket(owner, lease_s=lease_s))

    def renew_ticket(self, ticket: Ticket, *, lease_s: float) -> bool:
        """As `Replay.renew_ticket`, asked once: a server that is away gives the lease to nobody."""
        number = self._number(ticket.number)
        try:
            return self._shards.ask_once(
                number, lambda shard: shard.renew_ticket(ticket, lease_s=lease_s)
            )
        except ReplayUnavailable:
            return True

    def return_ticket(self, ticket: Ticket) -> None:
        """As `Replay.return_ticket`, asked once: a lease that is not returned runs out."""
        number = self._number(ticket.number)
        self._shards.ask_once(number, lambda shard: shard.return_ticket(ticket))

    def put_group(
        self,
        ticket: int,
        records: Sequence[Record],
        failed: Mapping[int, str] = MappingProxyType({}),
    ) -> bool:
        """As `Replay.put_group`."""
        number = self._number(ticket)
        answers = self._shards.settle(
            {number: lambda shard: shard.put_group(ticket, records, failed)}
        )
        return answers[number]

    # Scoring

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        """As `Replay.claim`: the oldest of each server, and another server first each time."""
        found = self._shards.gather(
            lambda shard, _, room, wait_s: shard.claim(
                owner, max_records=room, block_s=wait_s, lease_s=lease_s
            ),
            most=max_records,
            block_s=block_s,
        )
        return [record for _, record in found]

    def renew_claims(self, owner: str, record_ids: Sequence[str]) -> int:
        """As `Replay.renew_claims`, asked once. Those on a server that is away are not counted."""
        kept = 0
        for number, names in self._by_server(record_ids).items():
            with contextlib.suppress(ReplayUnavailable):
                kept += self._shards.ask_once(
                    number, lambda shard, names=names: shard.renew_claims(owner, names)
                )
        return kept

    def unclaim(self, record_ids: Sequence[str]) -> int:
        """As `Replay.unclaim`."""
        return self._sum(self._by_server(record_ids), RedisReplay.unclaim)

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str = "") -> int:
        """As `Replay.commit`."""
        parts = self._by_server(scored, name_of=lambda pair: pair[0])
        return self._sum(parts, lambda shard, part: shard.commit(part, owner))

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        """As `Replay.fail`."""
        part = self._by_server([record_id])
        return self._sum(part, lambda shard, _: shard.fail(record_id, reason, retry=retry)) == 1

    # Learner

    def tail(self, after: str, *, max_entries: int, block_s: float = 0.0) -> list[LogEntry]:
        """As `Replay.tail`: in the order of each server; a position names a place on every one."""
        places = list(places_in(parse_position(after), len(self._shards)))
        found = self._shards.gather(
            lambda shard, number, room, wait_s: shard.tail(
                position_text([places[number]]), max_entries=room, block_s=wait_s
            ),
            most=max_entries,
            block_s=block_s,
        )
        self._shards.bear_outages()
        entries: list[LogEntry] = []
        for number, entry in found:
            [places[number]] = parse_position(entry.position)
            entries.append(dataclasses.replace(entry, position=position_text(places)))
        return entries

    def read_latents(self, wanted: Sequence[tuple[str, int]]) -> list[np.ndarray | None]:
        """As `Replay.read_latents`."""
        rows_of = self._by_server(range(len(wanted)), name_of=lambda row: wanted[row][0])
        answers = self._shards.settle(
            {
                number: lambda shard, rows=rows: shard.read_latents([wanted[row] for row in rows])
                for number, rows in rows_of.items()
            }
        )
        latents: list[np.ndarray | None] = [None] * len(wanted)
        for number, rows in rows_of.items():
            for row, latent in zip(rows, answers[number], strict=True):
                latents[row] = latent
        return latents

    def set_priorities(self, priority_of: Mapping[str, float], *, generation: int) -> int:
        """As `Replay.set_priorities`."""
        return self._sum(
            self._by_server(priority_of),
            lambda shard, names: shard.set_priorities(
                {name: priority_of[name] for name in names}, generation=generation
            ),
        )

    def priorities(self) -> dict[str, float]:
        """As `Replay.priorities`."""
        found = self._shards.settle_all(RedisReplay.priorities)
        return {name: priority for part in found for name, priority in part.items()}

    def consume(self, below_ticket: int) -> int:
        """As `Replay.consume`."""
        return sum(self._shards.settle_all(lambda shard: shard.consume(below_ticket)))

    def shrink(self) -> int:
        """As `Replay.shrink`."""
        return sum(self._shards.settle_all(RedisReplay.shrink))

    def counters(self) -> Counters:
        """The sums over the servers, each of one instant, and the lowest limit.

        Of a server that is away they are what they last were: nothing on it ends meanwhile, so
        `progress` and what is admitted by it stay true.
        """
        self._counters |= self._shards.tell(RedisReplay.counters)
        unknown = [n for n in range(len(self._shards)) if n not in self._counters]
        self._counters |= self._shards.settle(dict.fromkeys(unknown, RedisReplay.counters))
        found = [dataclasses.astuple(counts) for counts in self._counters.values()]
        sums = Counters(*map(sum, zip(*found, strict=True)))
        admitted = min(counts.admitted for counts in self._counters.values())
        return dataclasses.replace(sums, admitted=admitted)

    def quarantined(self, max_records: int | None = None) -> list[Quarantined]:
        """As `Replay.quarantined`."""
        found = itertools.chain(
            *self._shards.settle_all(lambda shard: shard.quarantined(max_records))
        )
        return sorted(found, key=lambda record: record.failed_at, reverse=True)[:max_records]

    def release(self, record_ids: Sequence[str]) -> int:
        """As `Replay.release`."""
        return self._sum(self._by_server(record_ids), RedisReplay.release)

    def erase(self) -> int:
        """Delete every key of the run; returns how many. Nobody may use the run any more."""
        return sum(self._shards.settle_all(RedisReplay.erase))

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    # Within

    def _number(self, ticket: int) -> int:
        """Of the server that a ticket is on."""
        return ticket % len(self._shards)

    def _by_server(
        self, items: Iterable[T], *, name_of: Callable[[T], str] = str
    ) -> dict[int, list[T]]:
        """Items by the server of the record that each names, in the order that they have."""
        parts: dict[int, list[T]] = {}
        for item in items:
            ticket, _ = parse_record_id(name_of(item))
            parts.setdefault(self._number(ticket), []).append(item)
        return parts

    def _sum(self, parts: Mapping[int, list[T]], do: Callable[[RedisReplay, list[T]], int]) -> int:
        """What all servers count together, each given its part."""
        questions = {
            number: lambda shard, part=part: do(shard, part) for number, part in parts.items()
        }
        return sum(self._shards.settle(questions).values())
