"""The replay as its users see it: tickets in, records through, entries and slices out.

    ticket   admit ─► lease ─► put                       learner, samplers
    record            put ─► claim ─► commit | fail      samplers, reward servers
    log                       commit, fail, evict ─► tail ─► read_latents        learner
    failed                    quarantined ─► release ─► claim ...                a person

Delivery is at least once, effect exactly once: any process may die at any moment and any call may
be sent twice, and still each record ends in exactly one of *committed* and *failed*.
No method knows what a latent means, and none samples: rules over the index are `buffer.sampling`.

Every method may raise `ReplayUnavailable`, `ReplayAccessDenied` or `ReplayFull`. On several servers
(`buffer.sharded_replay`) what is atomic here is so on each of them.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from buffer.records import Counters, LogEntry, Quarantined, Record, Scores, Ticket


class Replay(Protocol):
    """A store of trajectories shared by all processes of one run."""

    def admit(self, *, limit: int, policy_version: int) -> None:
        """Allow tickets numbered below `limit` to be issued. Atomic, idempotent.

        Those in [old limit, limit) are to be sampled with `policy_version` or newer, for good: a
        ticket that is issued again has the version that it had at first. A limit that is not above
        the old one changes nothing.
        """
        ...

    def skip_to(self, ticket: int) -> None:
        """Never issue tickets below `ticket`, again either. Atomic, idempotent.

        For a learner that resumes on a store that lost what came before: the tickets count as
        progress, unless their group is there and waits for its scores.
        """
        ...

    def lease_ticket(self, owner: str, *, lease_s: float) -> Ticket | None:
        """The lowest expired ticket, else the next new one. Atomic.

        None: nothing is admitted now. The lease ends with `put_group`, or by itself after
        `lease_s` of the server's clock, and then another owner gets the ticket. All callers of a
        run ask for leases alike: one that ends much later is taken for older than a step of the
        clock, and ends.
        """
        ...

    def renew_ticket(self, ticket: Ticket, *, lease_s: float) -> bool:
        """Keep a lease for `lease_s` from now. False: it is another's already, or the group is put.

        Atomic, idempotent.
        """
        ...

    def return_ticket(self, ticket: Ticket) -> None:
        """Let the next caller have the ticket at once, unless the lease is another's already."""
        ...

    def put_group(
        self,
        ticket: int,
        records: Sequence[Record],
        failed: Mapping[int, str] = MappingProxyType({}),
    ) -> bool:
        """Store a ticket's whole group and queue it for scoring. Atomic, idempotent by ticket.

        Members that could not be sampled are `failed`, each with its reason: they are set aside at
        once, as a record is that could not be scored.

        False: the group was there already and this one is dropped (a late duplicate, or this very
        call sent twice), or the ticket was never issued. `ReplayFull` is raised when `PUT_SHARE` of
        the server's memory is used: commits, which make room, still go through.
        """
        ...

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        """Take records to score, oldest first; claims that are older than `lease_s` first.

        Empty: none came within `block_s`. A record stays queued until `commit` or `fail`, so a
        crash loses nothing. An expired claim counts as a failed attempt; damaged records are
        quarantined here.
        """
        ...

    def renew_claims(self, owner: str, record_ids: Sequence[str]) -> int:
        """Begin the leases of claimed records anew. Atomic, idempotent.

        Returns how many the owner still held: the others are another's already, or terminal.
        """
        ...

    def unclaim(self, record_ids: Sequence[str]) -> int:
        """Queue records that this client has claimed again, without counting an attempt.

        Atomic, idempotent. Returns how many were queued.
        """
        ...

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str = "") -> int:
        """Give records their rewards: log entry, acknowledgement and eviction in one atomic step.

        Idempotent by record id. Returns how many were new: a record that is committed or failed
        already is left as it is. ValueError: a number of rewards differs from that of the scored
        latents; then nothing of the call was applied.
        """
        ...

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        """A record could not be scored. Atomic, idempotent for one claim.

        With `retry` it is queued again, up to the limit of attempts; else, or after that, it is
        quarantined with its reason and the log says so. True: it was quarantined by this call.
        """
        ...

    def tail(self, after: str, *, max_entries: int, block_s: float = 0.0) -> list[LogEntry]:
        """Log entries after a position (`records.START` for all), in order.

        The entry of a committed record that is damaged comes as that of a failed one.

        Empty: none came within `block_s`. Survives restarts. Entries of live records are always
        there; a reader that is several capacities behind misses some of those evicted long ago.
        """
        ...

    def read_latents(self, wanted: Sequence[tuple[str, int]]) -> list[np.ndarray | None]:
        """The latent of each (record id, slot in `steps`): fp16 [C, H, W], read-only.

        None: evicted, failed, unknown or damaged. Only the wanted slices travel.
        """
        ...

    def set_priorities(self, priority_of: Mapping[str, float], *, generation: int) -> int:
        """New priorities of live records, by id; returns how many were changed. Atomic, idempotent.

        A record keeps the priority of the highest generation (the learner's step, say): a call
        that comes late, or twice, changes nothing, and a record that is gone stays gone. For a
        recipe that draws or removes by priority, as `deploy.bench` does; no method of ours does.
        """
        ...

    def priorities(self) -> dict[str, float]:
        """Of all live records: 1 where none was set. For such a recipe when it starts again."""
        ...

    def consume(self, below_ticket: int) -> int:
        """Evict all live records of smaller tickets; returns how many. Idempotent.

        For a recipe that needs the room of what it never draws again. No method of ours does: those
        that draw a round once find it by its tickets, and leave eviction to the capacity.
        """
        ...

    def shrink(self) -> int:
        """Evict what is above the capacity, as the next commit would; returns how many records.

        For a run that is resumed: a server that is full takes nothing that could be committed, so
        a smaller capacity must make room at once.
        """
        ...

    def counters(self) -> Counters:
        """All counts at one instant."""
        ...

    def quarantined(self, max_records: int | None = None) -> list[Quarantined]:
        """Failed records, newest first; None for all that are kept, with their latents.

        Each server keeps its newest `replay_settings.MOST_QUARANTINED`.
        """
        ...

    def release(self, record_ids: Sequence[str]) -> int:
        """Queue quarantined records again with all their attempts; returns how many. Idempotent."""
        ...

    def close(self) -> None:
        """Drop the connections; the next call opens them again."""
        ...
