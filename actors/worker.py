"""A sampler: leases tickets, runs the policy on them, hands the groups to the replay buffer.

    lease ─► policy at least as new as the tickets ask ─► sample ─► put ─► lease …

Weights change between batches only, so one group is of one version, the one it is stamped
with. A group that was put counts once however often it is put, so every step may be repeated:
a worker that dies, or gives its lease back, loses nothing.

A plain class with `run` and `stop`; knows nothing of Ray, Redis or where weights come from.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from actors.prompts import PromptSource
from actors.rollout import Group, Policy, to_records
from buffer.backoff import Backoff
from buffer.errors import ReplayFull
from buffer.heartbeat import Watch
from buffer.lost_gpu import is_gpu_lost
from buffer.records import Record, Ticket
from buffer.stage_seconds import StageSeconds
from learner.policy.board import Weights

log = logging.getLogger(__name__)


class Tickets(Protocol):
    """The part of `buffer.replay.Replay` that a sampler uses; the promises are told there."""

    def lease_ticket(self, owner: str, *, lease_s: float) -> Ticket | None:
        """The next ticket; None while no more are admitted."""
        ...

    def renew_ticket(self, ticket: Ticket, *, lease_s: float) -> bool:
        """Hold a lease for `lease_s` from now; False if it ran out."""
        ...

    def return_ticket(self, ticket: Ticket) -> None:
        """Give a lease back."""
        ...

    def put_group(self, ticket: int, records: Sequence[Record], failed: Mapping[int, str]) -> bool:
        """Hand a group over and end its lease; False if that ticket had been put already."""
        ...


class WeightSource(Protocol):
    """Where newer weights come from. Both calls have a deadline of their own."""

    def latest(self) -> tuple[int, int]:
        """The newest version, below 0 while there is none, and its edition.

        A version may be published again with other weights; an edition never is.
        """
        ...

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        """The newest version, not below `at_least`, and its weights."""
        ...


@dataclass(frozen=True)
class WorkerSettings:
    """How a sampler leases, waits and retries.

    Args:
        groups_per_batch: groups that go through the network together.
        lease_s: of a ticket; it is renewed every third of it while the worker works. A dead
            sampler's tickets are issued again after it.
        hold_s: a batch that is in the network for longer, or weights that are loaded into it, lose
            the tickets: the sampler hangs. Four times as long for the first.
        slow_advice: what to do about a batch that was only slow, for the log.
        idle_s: between looks at an empty ticket counter or an old policy version.
        version_timeout_s: a version that a ticket asks for must be published within this. A whole
            batch has lease_s + 2 × version_timeout_s + hold_s: a full replay is waited for.
        put_attempts: of one group, with back-off between them.
        full_s: between attempts to put into a full replay, which ends by itself.
        backoff_s: after the first failure; doubles up to `max_backoff_s`.
        max_failures: without a sampled batch between them; one more and the worker gives up.
    """

    groups_per_batch: int = 1
    lease_s: float = 15.0
    hold_s: float = 1800.0
    slow_advice: str = ""
    idle_s: float = 0.05
    version_timeout_s: float = 600.0
    put_attempts: int = 4
    full_s: float = 1.0
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_failures: int = 8

    def __post_init__(self) -> None:
        for name in ("groups_per_batch", "put_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.lease_s < self.hold_s:
            raise ValueError(f"lease_s is {self.lease_s}; it must be above 0 and below hold_s")


class SamplerWorker:
    """Runs until `stop`, or until it has failed `max_failures` times in a row.

    Args:
        owner: names the leases; unique among the samplers of a run.
        loaded_version: of the policy as it was built; −1 if it must be given weights first.
        on_hang: called from another thread when a batch takes longer than it may.
    """

    def __init__(
        self,
        tickets: Tickets,
        prompts: PromptSource,
        weights: WeightSource,
        policy: Policy,
        *,
        owner: str,
        settings: WorkerSettings | None = None,
        loaded_version: int = -1,
        on_hang: Callable[[], object] = lambda: None,
    ) -> None:
        self._tickets = tickets
        self._prompts = prompts
        self._weights = weights
        self._policy = policy
        self._owner = owner
        self._settings = settings or WorkerSettings()
        self._watch = Watch(
            hold_s=self._settings.hold_s,
            every_s=self._settings.lease_s / 3,
            on_hang=on_hang,
            name=owner,
            advice=self._settings.slow_advice,
        )
        self._version = loaded_version
        self._edition: int | None = None
        self._held: list[Ticket] = []
        self._stopping = threading.Event()
        self._backoff = Backoff(
            owner,
            first_s=self._settings.backoff_s,
            longest_s=self._settings.max_backoff_s,
            max_failures=self._settings.max_failures,
        )
        self._counts = dict.fromkeys(
            ("groups", "images", "duplicates", "returned", "failures", "loads", "full"), 0
        )
        self._flops = 0.0
        self._seconds = StageSeconds("wait", "load", "sample", "put")

    def run(self) -> None:
        """Sample until `stop`; every lease that is still held is given back at the end.

        Raises:
            GaveUpError: after too many failures in a row; its cause is the last of them.
            Exception: that the GPU is lost to this process; only a new one helps.
        """
        try:
            while not self._stopping.is_set():
                self._guarded_batch()
        finally:
            self._return_held()

    def stop(self) -> None:
        """End `run` soon: a batch in the network is finished and put, a waiting one returned."""
        self._stopping.set()

    def stats(self) -> dict[str, float | str]:
        """Counters since the start; may be called from another thread.

        `wait_s`, `load_s`, `sample_s` and `put_s` are seconds by stage; `images` counts
        trajectories, `flops` the operations that they took, `duplicates` groups that another
        sampler had put first, `full` how often the replay had no room.
        """
        version = {"policy_version": self._version, "held": len(self._held)}
        counts = {**self._counts, "flops": self._flops}
        return {"owner": self._owner, **counts, **self._seconds.stats(), **version}

    def _guarded_batch(self) -> None:
        try:
            self._batch()
        except Exception as error:
            if is_gpu_lost(error):
                log.error("%s: ends, as a new process is needed: %s", self._owner, error)
                raise
            self._count_failure(error)

    def _count_failure(self, error: Exception) -> None:
        self._counts["failures"] += 1
        log.exception("%s: batch failed, %d before it", self._owner, self._backoff.failures)
        self._return_held()
        wait_s = self._backoff.fail(error)
        with self._seconds.of("wait"):
            self._stopping.wait(wait_s)

    def _batch(self) -> None:
        leased = self._lease()
        if not leased:
            with self._seconds.of("wait"):
                self._stopping.wait(self._settings.idle_s)
            return
        wait_s = self._settings.lease_s + 2 * self._settings.version_timeout_s
        with self._watch.holding(self._renew_held, wait_s=wait_s):
            self._fulfil(leased)

    def _fulfil(self, leased: list[Ticket]) -> None:
        """The groups of the tickets, sampled and put; nothing if stopped while it waits."""
        if not self._take_version(max(ticket.policy_version for ticket in leased)):
            return
        groups = [self._group(ticket.number) for ticket in leased]
        with self._seconds.of("sample"), self._watch.working():
            rollouts = self._policy.sample(groups)
        self._watch.has_worked()
        self._flops += sum(rollout.flops for rollout in rollouts)
        made = [
            to_records(group, rollout, self._version, sampler=self._owner)
            for group, rollout in zip(groups, rollouts, strict=True)
        ]
        if not any(records for records, _ in made):
            raise ValueError(
                f"none of the latents of tickets {[ticket.number for ticket in leased]} are finite "
                f"in float16: policy version {self._version} has diverged"
            )
        for ticket, (records, failed) in zip(leased, made, strict=True):
            if not self._put(ticket.number, records, failed):
                return
            self._held.remove(ticket)
        self._backoff.succeed()

    def _lease(self) -> list[Ticket]:
        leased: list[Ticket] = []
        with self._seconds.of("wait"):
            while len(leased) < self._settings.groups_per_batch:
                ticket = self._tickets.lease_ticket(self._owner, lease_s=self._settings.lease_s)
                if ticket is None:
                    break
                leased.append(ticket)
                self._held.append(ticket)
        return leased

    def _group(self, ticket: int) -> Group:
        return Group(ticket, self._prompts.prompt_of(ticket), self._prompts.seed_of(ticket))

    def _take_version(self, needed: int) -> bool:
        """Load the newest version; False when stopped while waiting for `needed`."""
        with self._seconds.of("wait"):
            newest = self._wait_for_version(needed)
        if newest is None:
            return False
        version, edition = newest
        # Weights as built have no edition: their version tells whether they will do.
        if edition != self._edition and (self._edition is not None or version != self._version):
            with self._seconds.of("load"):
                self._load(needed, edition)
        return True

    def _wait_for_version(self, needed: int) -> tuple[int, int] | None:
        begun = time.monotonic()
        while (newest := self._weights.latest())[0] < needed:
            if time.monotonic() - begun > self._settings.version_timeout_s:
                raise TimeoutError(
                    f"policy version {needed} was not published within "
                    f"{self._settings.version_timeout_s} s; the newest is {newest[0]}"
                )
            if self._stopping.wait(self._settings.idle_s):
                return None
        return newest

    def _load(self, needed: int, edition: int) -> None:
        try:
            version, weights = self._weights.fetch(needed)
        except Exception:
            # References die with their publisher. What is loaded will do until it is back.
            if self._version < needed:
                raise
            log.warning("%s: stays at version %d", self._owner, self._version, exc_info=True)
            return
        with self._watch.working():
            self._policy.load(weights)
        self._version, self._edition = version, edition
        self._counts["loads"] += 1

    def _put(self, ticket: int, records: Sequence[Record], failed: Mapping[int, str]) -> bool:
        """Hands a group over; False when stopped while the replay is full."""
        for member, reason in failed.items():
            log.warning("%s: ticket %d, member %d: %s", self._owner, ticket, member, reason)
        with self._seconds.of("put"):
            new = self._put_with_retries(ticket, records, failed)
        if new is None:
            return False
        if new:
            self._counts["groups"] += 1
            self._counts["images"] += len(records)
        else:
            self._counts["duplicates"] += 1
        return True

    def _put_with_retries(
        self, ticket: int, records: Sequence[Record], failed: Mapping[int, str]
    ) -> bool | None:
        """As `put_group`. Putting again is harmless, sampling again is dear."""
        failures = 0
        while True:
            try:
                return self._tickets.put_group(ticket, records, failed)
            except ReplayFull as error:
                # Not a failure: the replay empties as records are scored and evicted.
                if self._counts["full"] % 30 == 0:
                    log.warning("%s: waits with ticket %d: %s", self._owner, ticket, error)
                self._counts["full"] += 1
                if self._stopping.wait(self._settings.full_s):
                    return None
            except Exception:
                failures += 1
                if failures >= self._settings.put_attempts:
                    raise
                log.warning("%s: ticket %d not put", self._owner, ticket, exc_info=True)
                self._stopping.wait(self._backoff.wait_s(failures))

    def _renew_held(self) -> None:
        for ticket in tuple(self._held):
            if not self._tickets.renew_ticket(ticket, lease_s=self._settings.lease_s):
                log.warning("%s: the lease of ticket %d ran out", self._owner, ticket.number)

    def _return_held(self) -> None:
        while self._held:
            ticket = self._held.pop()
            try:
                self._tickets.return_ticket(ticket)
                self._counts["returned"] += 1
            except Exception:  # the lease runs out by itself
                log.warning("%s: ticket %d not returned", self._owner, ticket.number, exc_info=True)
