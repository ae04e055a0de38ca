"""A pool of reward server actors: creates, names, counts, replaces and scales them under Ray.

    start(n) ─► reward-<name>-0 … n−1 ─► ensure_alive(), about once a second ─► stop()

Servers hold nothing that is lost with them: what a dead one had claimed is taken over when
its lease ends. The pool itself replaces what died (Ray restarts nothing), so a server that
cannot be built is seen with its reason instead of being restarted in silence.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

log = logging.getLogger(__name__)


class Server(Protocol):
    """What an actor hosts: a `RewardServer`."""

    def run(self) -> None:
        """Work until `stop`; raising means giving up."""
        ...

    def stop(self) -> None:
        """End `run` soon."""
        ...

    def stats(self) -> dict[str, float | str]:
        """Counters since the start."""
        ...


class PoolGaveUpError(RuntimeError):
    """A reward server died too often in a row."""


@dataclass(frozen=True)
class PoolSettings:
    """How a pool replaces servers.

    Args:
        backoff_s: before the first replacement in a row; doubles up to `max_backoff_s`.
        max_failures: of one server in a row; one more and the pool gives up.
        healthy_s: a server that ran so long starts its count afresh.
        stop_timeout_s: for servers to finish the batch in hand; then they are killed.
        stats_timeout_s: a server that does not answer within it is left out.
    """

    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    max_failures: int = 5
    healthy_s: float = 60.0
    stop_timeout_s: float = 20.0
    stats_timeout_s: float = 5.0


class ServerHost:
    """Inside the actor: builds the server in `run`, so that its errors arrive with a reason."""

    def __init__(self, build: Callable[[str], Server], owner: str) -> None:
        self._build = build
        self._owner = owner
        self._server: Server | None = None
        self._stopping = Event()

    def run(self) -> None:
        """Build the server and run it until `stop`."""
        self._server = self._build(self._owner)
        if not self._stopping.is_set():
            self._server.run()

    def stop(self) -> None:
        """End `run` soon, or before it has begun."""
        self._stopping.set()
        if self._server is not None:
            self._server.stop()

    def stats(self) -> dict[str, float | str]:
        """The server's counters; only its owner while it is being built."""
        return {"owner": self._owner} if self._server is None else self._server.stats()


@dataclass
class _Slot:
    """One numbered place in the pool and the actor that fills it now, if any."""

    number: int
    actor: Any = None
    running: Any = None  # the reference that `run` will fill
    started_at: float = 0.0
    due_at: float = 0.0  # an empty slot is filled from then on
    generation: int = 0
    failures: int = 0


class RewardPool:
    """The servers of one reward group.

    Args:
        name: of the group; its actors are `reward-<name>-<number>`.
        build: makes the server inside its actor, given the owner under which it claims: the
            actor's name and how often it was replaced, so that two lives never share claims.
        namespace: of the run.
        actor_options: of Ray, such as num_cpus, num_gpus or runtime_env.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[str], Server],
        *,
        namespace: str,
        actor_options: Mapping[str, Any] | None = None,
        settings: PoolSettings | None = None,
    ) -> None:
        self._name = name
        self._build = build
        self._namespace = namespace
        self._actor_options = dict(actor_options or {})
        self._settings = settings or PoolSettings()
        self._slots: list[_Slot] = []

    def __len__(self) -> int:
        """How many servers are meant to run."""
        return len(self._slots)

    @property
    def alive(self) -> int:
        """How many servers had not ended when `ensure_alive` last looked."""
        return sum(slot.actor is not None for slot in self._slots)

    def start(self, count: int) -> None:
        """Create the first `count` servers; does not wait for them to be built."""
        if count < 1:
            raise ValueError(f"a reward pool of {count} servers scores nothing; start at least 1")
        self.scale(count)

    def scale(self, count: int) -> None:
        """Have `count` servers: new ones are created, the highest numbers finish and stop."""
        if count < 0:
            raise ValueError(f"cannot scale reward pool {self._name!r} to {count} servers")
        surplus, self._slots = self._slots[count:], self._slots[:count]
        self._end(surplus)
        for number in range(len(self._slots), count):
            slot = _Slot(number)
            self._slots.append(slot)
            self._fill(slot)

    def ensure_alive(self) -> None:
        """Replace servers that have ended, each after its back-off.

        Raises:
            PoolGaveUpError: one of them failed too often in a row.
        """
        for slot in self._slots:
            if slot.actor is not None and self._has_ended(slot):
                self._note_end(slot)
            if slot.actor is None and time.monotonic() >= slot.due_at:
                self._fill(slot)

    def stats(self) -> dict[str, dict[str, float | str]]:
        """Actor name -> its server's counters, of those that answer in time."""
        asked = {
            slot.actor.stats.remote(): self._actor_name(slot)
            for slot in self._slots
            if slot.actor is not None
        }
        if not asked:
            return {}
        ready, _ = ray.wait(
            list(asked), num_returns=len(asked), timeout=self._settings.stats_timeout_s
        )
        return {asked[ref]: answer for ref in ready if (answer := _value_or_none(ref)) is not None}

    def stop(self) -> None:
        """Stop every server: batches in hand are finished, within `stop_timeout_s`."""
        ending, self._slots = self._slots, []
        self._end(ending)

    def _fill(self, slot: _Slot) -> None:
        options = {
            **self._actor_options,
            "name": self._actor_name(slot),
            "namespace": self._namespace,
            "max_restarts": 0,
            "max_concurrency": 3,  # run, and beside it stats and stop
        }
        owner = f"{self._actor_name(slot)}.{slot.generation}"
        try:
            slot.actor = ray.remote(ServerHost).options(**options).remote(self._build, owner)
        except ValueError as error:
            # Ray frees a dead actor's name a moment after its death.
            if "already" not in str(error):
                raise
            slot.due_at = time.monotonic() + self._settings.backoff_s
            log.info("%s: name not free yet: %s", self._actor_name(slot), error)
            return
        slot.running = slot.actor.run.remote()
        slot.started_at = time.monotonic()
        slot.generation += 1

    def _has_ended(self, slot: _Slot) -> bool:
        return bool(ray.wait([slot.running], timeout=0)[0])

    def _note_end(self, slot: _Slot) -> None:
        reason = _reason_of_end(slot.running)
        if time.monotonic() - slot.started_at >= self._settings.healthy_s:
            slot.failures = 0
        slot.failures += 1
        ray.kill(slot.actor)
        slot.actor = slot.running = None
        log.warning("%s ended, %d in a row: %s", self._actor_name(slot), slot.failures, reason)
        if slot.failures > self._settings.max_failures:
            raise PoolGaveUpError(
                f"{self._actor_name(slot)} ended {slot.failures} times in a row, last: {reason}"
            )
        backoff_s = self._settings.backoff_s * 2 ** (slot.failures - 1)
        slot.due_at = time.monotonic() + min(backoff_s, self._settings.max_backoff_s)

    def _end(self, slots: list[_Slot]) -> None:
        slots = [slot for slot in slots if slot.actor is not None]
        if not slots:
            return
        for slot in slots:
            slot.actor.stop.remote()
        _, late = ray.wait(
            [slot.running for slot in slots],
            num_returns=len(slots),
            timeout=self._settings.stop_timeout_s,
        )
        for slot in slots:
            if slot.running in late:
                log.warning("%s did not stop in time and is killed", self._actor_name(slot))
            ray.kill(slot.actor)
            slot.actor = slot.running = None

    def _actor_name(self, slot: _Slot) -> str:
        return f"reward-{self._name}-{slot.number}"


def _value_or_none(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayError:
        return None


def _reason_of_end(running: Any) -> str:
    try:
        ray.get(running)
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        return f"{type(cause).__name__}: {cause}"
    return "it returned without being asked to stop"
