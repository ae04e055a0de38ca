"""`Replay` on one Redis or Valkey server (6.2 or newer).

Every change is one Lua script (`buffer/lua`), idempotent, because the client sends a command again
when its answer is lost; but for taking new records: those of a lost answer wait out their lease,
and count an attempt. Leases run on the server's clock. Payloads travel outside the scripts when
they are read. Keys: `buffer/keys.py`.
"""

import logging
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from buffer.codec import NUM_SCORED_FIELD, encode_record, encode_scores
from buffer.connection import check_connection
from buffer.errors import CodecError, ReplayError
from buffer.keys import GROUP
from buffer.latent_reader import LatentReader
from buffer.records import (
    MAX_REASON_BYTES,
    MAX_TICKET,
    MAX_VERSION,
    Counters,
    LogEntry,
    Quarantined,
    Record,
    Scores,
    Ticket,
    parse_position,
    parse_record_id,
    places_in,
    record_id,
)
from buffer.redis_link import RedisLink, milliseconds, stream_entries
from buffer.replay_settings import ReplaySettings
from buffer.run_owner import Start, started, take_run, taken_over
from buffer.salvage import entry_or_failed, record_name, record_named

log = logging.getLogger(__name__)
T = TypeVar("T")

_CHUNK = 1000
"""Records in one command: a longer one would keep others waiting."""
_STAGED_S = 600
"""Longer than any outage that is ridden out between sending a payload and making it the run's."""


class RedisReplay:
    """One process's view of a run's replay; see `buffer.replay.Replay` for what each method means.

    Picklable: another process that unpickles it opens its own connections.
    """

    def __init__(self, settings: ReplaySettings) -> None:
        self.settings = settings
        self._link = RedisLink(
            settings.url,
            settings.run,
            timeout_s=settings.timeout_s,
            outage_s=settings.outage_s,
            # Whoever has other servers to ask tries one that is away again later.
            retries=3 if settings.shards == 1 else 1,
        )
        self._latents = LatentReader(self._link)
        # Of every record in hand: its entry in the queue, and for whom it was claimed.
        self._claims: dict[str, tuple[bytes, str]] = {}

    @classmethod
    def connect(cls, settings: ReplaySettings, start: Start | None = None) -> "RedisReplay":
        """A replay on a server that was checked, and that is the start's from now on.

        Raises:
            ReplayUnfit: the server may not be used, holds another part of this run, or the run is
                another start's.
        """
        check_connection(settings.url, settings.timeout_s)
        replay = cls(started(settings, start))
        replay.take(start)
        return replay

    def take(self, start: Start | None, *, writes: bool = True) -> None:
        """As `take_run` on this server."""
        take_run(self._link, self.settings, start, writes=writes)

    def __reduce__(self) -> tuple[type["RedisReplay"], tuple[ReplaySettings]]:
        return RedisReplay, (self.settings,)

    def __repr__(self) -> str:
        return f"RedisReplay({self._link!r})"

    # Tickets

    def admit(self, *, limit: int, policy_version: int) -> None:
        """As `Replay.admit`."""
        if not 0 <= limit <= MAX_TICKET or not 0 <= policy_version <= MAX_VERSION:
            raise ValueError(f"limit {limit} or policy_version {policy_version} is out of range")
        try:
            self._link.run("admit", limit, policy_version, self.settings.start)
        except ReplayError as error:
            if "TAKEN by" not in str(error):
                raise
            raise taken_over(self._link, self.settings.run) from error

    def skip_to(self, ticket: int) -> None:
        """As `Replay.skip_to`."""
        if not 0 <= ticket <= MAX_TICKET:
            raise ValueError(f"ticket {ticket} is out of range")
        self._link.run("skip", ticket, self.settings.first_ticket(ticket))

    def lease_ticket(self, owner: str, *, lease_s: float) -> Ticket | None:
        """As `Replay.lease_ticket`."""
        lease_id = f"{owner}/{uuid.uuid4().hex}"
        found = self._link.run("lease", lease_id, milliseconds(lease_s), *self._stride)
        return Ticket(int(found[0]), int(found[1]), lease_id) if found else None

    def renew_ticket(self, ticket: Ticket, *, lease_s: float) -> bool:
        """As `Replay.renew_ticket`."""
        return bool(self._link.run("extend", ticket.number, ticket.lease_id, milliseconds(lease_s)))

    def return_ticket(self, ticket: Ticket) -> None:
        """As `Replay.return_ticket`."""
        self._link.run("extend", ticket.number, ticket.lease_id, 0)

    def put_group(
        self,
        ticket: int,
        records: Sequence[Record],
        failed: Mapping[int, str] = MappingProxyType({}),
    ) -> bool:
        """As `Replay.put_group`."""
        members = [record.member for record in records if record.ticket == ticket]
        members = sorted([*members, *failed])
        if not members or members != list(range(len(records) + len(failed))):
            raise ValueError(f"ticket {ticket} needs members 0, 1, ... of its own; got {members}")
        call = uuid.uuid4().hex
        names = [record.record_id for record in records]
        key_of = {name: self._link.record_key(f"staged:{call}:{name}") for name in names}
        is_new = False
        words: list[str | int] = []
        for member, reason in failed.items():
            words += [record_id(ticket, member), "", 0, reason]
        try:
            is_new = bool(self._link.run("put", ticket, *self._staged(records, key_of), *words))
        finally:
            # A full server may have taken some of them before it refused.
            if not is_new:
                self._link.drop(list(key_of.values()))
        return is_new

    # Scoring

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        """As `Replay.claim`."""
        deadline = time.monotonic() + block_s
        while True:
            remaining_s = max(0.0, deadline - time.monotonic())
            found = self._take_over(owner, max_records, lease_s)
            found = found or self._take_new(owner, max_records, remaining_s)
            records = self._load(found, owner)
            if records or time.monotonic() >= deadline:
                return records

    def renew_claims(self, owner: str, record_ids: Sequence[str]) -> int:
        """As `Replay.renew_claims`."""
        # Asked once each: another thread may settle claims meanwhile.
        claims = [claim for name in record_ids if (claim := self._claims.get(name))]
        entries = [entry for entry, _ in claims]
        return int(self._link.run("renew", owner, *entries)) if entries else 0

    def unclaim(self, record_ids: Sequence[str]) -> int:
        """As `Replay.unclaim`."""
        held = [(name, *self._claims[name]) for name in record_ids if name in self._claims]
        words = [word for claim in held for word in claim]
        queued = int(self._link.run("unclaim", *words)) if held else 0
        for name, *_ in held:
            self._claims.pop(name, None)
        return queued

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str = "") -> int:
        """As `Replay.commit`."""
        words: list[str | int | bytes] = []
        for name, scores in scored:
            parse_record_id(name)
            words += [name, scores.num_scored, encode_scores(scores)]
        try:
            new = self._link.run("commit", *self._capacity, owner, *words)
        except ReplayError as error:
            if "BADSCORES" not in str(error):
                raise
            raise ValueError(f"{error} ({owner})") from error
        for name, _ in scored:
            self._claims.pop(name, None)
        return int(new)

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        """As `Replay.fail`."""
        parse_record_id(record_id)
        # Known until the server has answered: who asks again must name the same claim.
        claim = self._claims.get(record_id, (b"", ""))
        is_quarantined = self._fail(record_id, reason, retry=retry, claim=claim)
        self._claims.pop(record_id, None)
        return is_quarantined

    # Learner

    def tail(self, after: str, *, max_entries: int, block_s: float = 0.0) -> list[LogEntry]:
        """As `Replay.tail`."""
        places_in(parse_position(after), 1)
        deadline = time.monotonic() + block_s
        while True:
            remaining_s = max(0.0, deadline - time.monotonic())
            entries = stream_entries(self._read_log(after, max_entries, remaining_s))
            if entries or time.monotonic() >= deadline:
                return [entry_or_failed(position, fields) for position, fields in entries]

    def read_latents(self, wanted: Sequence[tuple[str, int]]) -> list[np.ndarray | None]:
        """As `Replay.read_latents`."""
        return self._latents.read(wanted)

    def set_priorities(self, priority_of: Mapping[str, float], *, generation: int) -> int:
        """As `Replay.set_priorities`."""
        if not 0 <= generation <= MAX_VERSION:
            raise ValueError(f"generation {generation} is out of range")
        for name, priority in priority_of.items():
            parse_record_id(name)
            if not (math.isfinite(priority) and priority >= 0):
                raise ValueError(f"the priority of {name} must be at least 0; got {priority}")
        words = [(name, repr(float(value))) for name, value in priority_of.items()]
        return sum(
            int(self._link.run("prioritise", generation, *[word for pair in some for word in pair]))
            for some in _chunks(words)
        )

    def priorities(self) -> dict[str, float]:
        """As `Replay.priorities`."""
        link = self._link
        found = link.ask(lambda: list(link.client.zscan_iter(link.key("priorities"), count=_CHUNK)))
        return {name.decode(): priority for name, priority in found}

    def consume(self, below_ticket: int) -> int:
        """As `Replay.consume`."""
        if not 0 <= below_ticket <= MAX_TICKET:
            raise ValueError(f"ticket {below_ticket} is out of range")
        return self._until_none("consume", below_ticket)

    def shrink(self) -> int:
        """As `Replay.shrink`."""
        return self._until_none("shrink", *self._capacity)

    def counters(self) -> Counters:
        """As `Replay.counters`."""
        found = [int(number) for number in self._link.run("counters", *self._stride)]
        if not all(0 <= number <= MAX_VERSION for number in found):
            raise CodecError(f"the counts of run {self.settings.run!r} are damaged: {found}")
        admitted, issued, leased, open_tickets, *records = found
        return Counters(
            admitted, issued, leased, open_tickets, issued - leased - open_tickets, *records
        )

    def quarantined(self, max_records: int | None = None) -> list[Quarantined]:
        """As `Replay.quarantined`."""
        link, last = self._link, -1 if max_records is None else max_records - 1

        def question() -> list[Any]:
            found: Any = link.client.zrevrange(link.key("quarantine"), 0, last, withscores=True)
            names = [name for name, _ in found]
            reasons = link.client.hmget(link.key("reasons"), names) if names else []
            sizes = link.client.hmget(link.key("sizes"), names) if names else []
            return list(zip(found, reasons, sizes, strict=True))  # pyright: ignore

        return [
            Quarantined(
                record_id=name.decode(),
                reason=(reason or b"").decode("utf-8", "replace"),
                failed_at=at_ms / 1000,
                size_bytes=int(size or 0),
            )
            for (name, at_ms), reason, size in link.ask(question)
        ]

    def release(self, record_ids: Sequence[str]) -> int:
        """As `Replay.release`."""
        for name in record_ids:
            parse_record_id(name)
        return sum(int(self._link.run("release", *some)) for some in _chunks(record_ids))

    def erase(self) -> int:
        """Delete every key of the run; returns how many. Nobody may use the run any more."""
        return self._link.erase(_CHUNK)

    def close(self) -> None:
        self._link.close()

    # Within

    def _staged(self, records: Sequence[Record], key_of: Mapping[str, str]) -> list[Any]:
        """Sends payloads to keys that expire: for each record what `put.lua` is told.

        Outside the script that makes them the run's, which would copy them twice more.
        """
        fields_of = {record.record_id: encode_record(record) for record in records}

        def fill(pipe: Any) -> None:
            for name, fields in fields_of.items():
                # It expires before it holds much: whoever dies meanwhile leaves no payload.
                pipe.hset(key_of[name], NUM_SCORED_FIELD, fields[NUM_SCORED_FIELD])
                pipe.expire(key_of[name], _STAGED_S)
                pipe.hset(key_of[name], mapping=fields)

        self._link.ask_each(fill)
        return [
            word
            for name, fields in fields_of.items()
            for word in (name, key_of[name], sum(map(len, chain(fields, fields.values()))), "")
        ]

    def _until_none(self, script: str, *words: int | str) -> int:
        """Records that a script which takes some at a time has taken in all."""
        total = 0
        while gone := int(self._link.run(script, *words, _CHUNK)):
            total += gone
        return total

    @property
    def _capacity(self) -> tuple[int, int, str]:
        settings = self.settings
        return settings.capacity_records, settings.capacity_bytes, settings.remover

    @property
    def _stride(self) -> tuple[int, int]:
        return self.settings.first_ticket(), self.settings.shards

    def _take_over(self, owner: str, max_records: int, lease_s: float) -> list[tuple[bytes, bytes]]:
        lease_ms, attempts = milliseconds(lease_s), self.settings.max_attempts
        found = self._link.run("takeover", owner, lease_ms, max_records, attempts)
        return list(zip(found[::2], found[1::2], strict=True))

    def _read_log(self, after: str, max_entries: int, block_s: float) -> Any:
        link, block_ms = self._link, self._link.block_ms(block_s)
        where: Any = {link.key("log"): after}
        return link.ask(lambda: link.client.xread(where, count=max_entries, block=block_ms))

    def _take_new(self, owner: str, max_records: int, block_s: float) -> list[tuple[bytes, bytes]]:
        link, block_ms = self._link, self._link.block_ms(block_s)
        where: Any = {link.key("pending"): ">"}
        answer = link.ask(
            lambda: link.client.xreadgroup(GROUP, owner, where, count=max_records, block=block_ms)
        )
        return [(entry, fields.get(b"id", b"")) for entry, fields in stream_entries(answer)]

    def _load(self, found: Sequence[tuple[bytes, bytes]], owner: str) -> list[Record]:
        named = [(entry, record_name(name)) for entry, name in found]
        self._drop_entries([entry for entry, name in named if name is None])
        known = [(entry, name) for entry, name in named if name is not None]
        if not known:
            return []

        def fill(pipe: Any) -> None:
            for _, name in known:
                pipe.hgetall(self._link.record_key(name))

        records: list[Record] = []
        for (entry, name), fields in zip(known, self._link.ask_each(fill), strict=True):
            try:
                records.append(record_named(name, fields))
            except CodecError as error:
                self._fail(name, f"unreadable record: {error}", retry=False, claim=(entry, owner))
            else:
                self._claims[name] = entry, owner
        return records

    def _drop_entries(self, entries: Sequence[bytes]) -> None:
        """Takes entries that name no record off the queue: nobody could ever finish them."""
        if entries:
            log.warning("%d entries of the queue name no record and are dropped", len(entries))
            link = self._link
            link.ask(lambda: link.client.xack(link.key("pending"), GROUP, *entries))
            link.ask(lambda: link.client.xdel(link.key("pending"), *entries))

    def _fail(self, record_id: str, reason: str, *, retry: bool, claim: tuple[bytes, str]) -> bool:
        short = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
        attempts = self.settings.max_attempts
        return int(self._link.run("fail", record_id, short, int(retry), attempts, *claim)) == 1


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
