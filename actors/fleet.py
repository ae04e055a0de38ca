"""A fleet of actors: creates, names, counts, replaces and scales them under Ray.

    start(n) ─► sampler-0 … n−1 ─► ensure_alive(), about once a second ─► stop()
                     ▲ scale(m), at any time

A worker that dies loses nothing: its leases run out and its work is given to another. The fleet
itself replaces what died (Ray restarts nothing), so a worker that cannot be built is seen with
its reason. Nothing here waits but `stop`, and nothing imports torch: the workers do.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from actors.host import Worker, WorkerHost
from actors.slot import Seen, Slot, State, error_of_end, is_node_lost, reason_of_end, value_or_none

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """An actor that ended without being asked to, and is replaced.

    Args:
        why: in words, after the actor's name.
    """

    actor: str
    why: str


class FleetGaveUpError(RuntimeError):
    """A worker died too often in a row."""


@dataclass(frozen=True)
class FleetSettings:
    """How a fleet replaces and ends workers.

    Args:
        backoff_s: before the first replacement in a row; doubles up to `max_backoff_s`.
        max_failures: of one worker in a row; one more and the fleet gives up, unless another has
            been at work for `healthy_s`: then it may be a machine that is broken, and not the run.
        healthy_s: a worker that was at work so long starts its count afresh; longer than one that
            fails at each batch takes to give up.
        drain_s: for a worker of a fleet that shrinks to finish its batch; then it is killed.
        build_s: for a worker to be built, from when its process answers; then it is replaced.
        stop_s: and of one that ends: with all else that does, less than `ray job stop` waits.
        stats_timeout_s: a worker that does not answer within it is left out.
    """

    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    max_failures: int = 5
    healthy_s: float = 600.0
    build_s: float = 1800.0
    drain_s: float = 60.0
    stop_s: float = 25.0
    stats_timeout_s: float = 5.0


_NOT_AT_WORK: tuple[State, ...] = ("placing", "down")


class Fleet:
    """Actors of one kind, `<name>-0` and up, in the current namespace.

    Args:
        build: makes the worker inside its actor, given the owner under which it leases: the
            actor's name and a count, so that two lives of an actor in one fleet share no leases.
        actor_options: of Ray, such as num_cpus, num_gpus or scheduling_strategy.
        host: the actors' class, where more is asked of them than a `WorkerHost` answers.
    """

    def __init__(
        self,
        build: Callable[[str], Worker],
        *,
        name: str,
        actor_options: Mapping[str, Any] | None = None,
        settings: FleetSettings | None = None,
        host: type[WorkerHost] = WorkerHost,
    ) -> None:
        self._build = build
        self._host = host
        self._name = name
        self._actor_options = dict(actor_options or {})
        self._settings = settings or FleetSettings()
        self._slots: list[Slot] = []
        self._draining: list[Slot] = []
        self._ends: list[End] = []
        self._lives = 0

    def __len__(self) -> int:
        """How many actors are meant to run."""
        return len(self._slots)

    def start(self, count: int) -> None:
        """Create the first `count` actors; does not wait for them to be built."""
        if count < 1:
            raise ValueError(f"a {self._name} fleet of {count} does nothing; start at least 1")
        self.scale(count)

    def scale(self, count: int) -> None:
        """Have `count` actors: new ones are created, and what is too many drains and ends.

        First those that have no place or are down, then the highest numbers.
        """
        if count < 0:
            raise ValueError(f"cannot scale the {self._name} fleet to {count}")
        if surplus := sorted(self._slots, key=lambda slot: slot.state in _NOT_AT_WORK)[count:]:
            self._slots = [slot for slot in self._slots if slot not in surplus]
            self._drain(surplus)
        taken = {slot.name for slot in self._slots}
        free = (name for i in itertools.count() if (name := f"{self._name}-{i}") not in taken)
        self._slots += [Slot(next(free)) for _ in range(len(self._slots), count)]
        self._fill_empty()

    def ensure_alive(self) -> list[str]:
        """Replace actors that have ended, each after its back-off, and clear away drained ones.

        Returns:
            The names of the actors that were created by this call.

        Raises:
            FleetGaveUpError: one of them failed too often in a row.
        """
        self._clear_drained()
        for slot in self._slots:
            if slot.actor is not None and slot.has_ended() and not slot.is_in_doubt():
                self._note_end(slot)
            elif self._hangs_in_building(slot):
                slot.kill()
                self._count_end(slot, f"it was not built within {self._settings.build_s:g} s", 0.0)
        return self._fill_empty()

    def ends(self) -> list[End]:
        """Actors that have ended since the last call, as `ensure_alive` saw it."""
        ends, self._ends = self._ends, []
        return ends

    def stats(self) -> dict[str, dict[str, float | str]]:
        """Actor name -> its worker's counters, of those that answer in time."""
        living = [slot for slot in self._slots if slot.actor is not None]
        asked = {slot.actor.stats.remote(): slot for slot in living}
        if not asked:
            return {}
        ready, _ = ray.wait(
            list(asked), num_returns=len(asked), timeout=self._settings.stats_timeout_s
        )
        answers = {}
        for ref in ready:
            slot, answer = asked[ref], value_or_none(ref)
            if answer is not None:
                answers[slot.name] = answer
                slot.take(answer)  # who has answered is no more `placing`
        return answers

    def glance(self) -> dict[str, Seen]:
        """Every actor as it last answered, those that drain too; waits for none of them."""
        for slot in (*self._slots, *self._draining):
            slot.glance()
        seen = {f"{s.name} (ending)": Seen("draining", s.stats or {}) for s in self._draining}
        return {slot.name: Seen(slot.state, slot.stats or {}) for slot in self._slots} | seen

    def ask_to_stop(self) -> None:
        """Have every actor end: batches in hand are finished and leases returned."""
        ending, self._slots = self._slots, []
        self._drain(ending)
        until = time.monotonic() + self._settings.stop_s
        for slot in self._draining:
            slot.due_at = min(slot.due_at, until)

    def stop(self) -> None:
        """End every actor, within `stop_s` of when they were asked to."""
        self.ask_to_stop()
        running = [slot.running for slot in self._draining]
        if running:
            left_s = max(slot.due_at for slot in self._draining) - time.monotonic()
            ray.wait(running, num_returns=len(running), timeout=max(left_s, 0.0))
        for slot in self._draining:
            slot.due_at = 0.0
        self._clear_drained()

    def _fill_empty(self) -> list[str]:
        now = time.monotonic()
        empty = [slot for slot in self._slots if slot.actor is None and now >= slot.due_at]
        return [slot.name for slot in empty if self._fill(slot)]

    def _fill(self, slot: Slot) -> bool:
        options = {
            **self._actor_options,
            "name": slot.name,
            "max_restarts": 0,
            "max_concurrency": 3,  # run, and beside it stats and stop
        }
        owner = f"{slot.name}.{self._lives}"
        try:
            slot.actor = _actor_class(self._host).options(**options).remote(self._build, owner)
        except ValueError as error:
            # Ray frees a name a moment after death, and a draining actor still has its own.
            if "already" not in str(error):
                raise
            slot.due_at = time.monotonic() + self._settings.backoff_s
            log.info("%s: name not free yet: %s", slot.name, error)
            return False
        slot.running = slot.actor.run.remote()
        slot.glance()
        self._lives += 1
        return True

    def _note_end(self, slot: Slot) -> None:
        error, was_doubted = error_of_end(slot.running), slot.doubted_at is not None
        worked_s = time.monotonic() - (slot.working_since or math.inf)
        slot.kill()
        if is_node_lost(error):
            # No fault of the worker, and nothing to wait for: Ray looks for another place.
            self._note(slot, "was lost with its node")
            slot.due_at = time.monotonic()
            return
        reason = "it was out of reach" if error is None and was_doubted else reason_of_end(error)
        self._count_end(slot, reason, worked_s)

    def _hangs_in_building(self, slot: Slot) -> bool:
        """Such as in a network file system or a driver that does not answer."""
        since = slot.building_since or math.inf
        return slot.state == "building" and time.monotonic() - since > self._settings.build_s

    def _count_end(self, slot: Slot, reason: str, worked_s: float) -> None:
        """Has an empty slot filled after its back-off.

        Raises:
            FleetGaveUpError: see `ensure_alive`.
        """
        if worked_s >= self._settings.healthy_s:
            slot.failures = 0
        slot.failures += 1
        if slot.failures > self._settings.max_failures and not self._has_healthy():
            raise FleetGaveUpError(
                f"{slot.name} ended {slot.failures} times in a row, last: {reason}"
            )
        self._note(slot, f"ended, {slot.failures} in a row: {reason}")
        backoff_s = self._settings.backoff_s * 2 ** min(slot.failures - 1, 16)
        slot.due_at = time.monotonic() + min(backoff_s, self._settings.max_backoff_s)

    def _has_healthy(self) -> bool:
        """Whether anyone has been at work for long."""
        since = [slot.working_since for slot in self._slots if slot.state == "working"]
        healthy_s = self._settings.healthy_s
        return any(time.monotonic() - (begun or math.inf) >= healthy_s for begun in since)

    def _note(self, slot: Slot, why: str) -> None:
        self._ends.append(End(slot.name, why))
        log.warning("%s %s; it is replaced", slot.name, why)

    def _drain(self, slots: list[Slot]) -> None:
        for slot in slots:
            slot.glance()
            if slot.state == "placing":
                slot.kill()  # it has nothing in hand, and may never come up to be asked
            elif slot.actor is not None:
                slot.actor.stop.remote()
                slot.due_at = time.monotonic() + self._settings.drain_s
                self._draining.append(slot)

    def _clear_drained(self) -> None:
        for slot in self._draining:
            ended = slot.has_ended()
            if not ended and time.monotonic() < slot.due_at:
                continue
            if not ended:
                log.warning("%s did not end in time and is killed", slot.name)
            slot.kill()
        self._draining = [slot for slot in self._draining if slot.actor is not None]


def _actor_class(host: type[WorkerHost]) -> Any:
    remote: Any = ray.remote
    groups = dict(host.concurrency_groups)
    return remote(concurrency_groups=groups)(host) if groups else remote(host)
