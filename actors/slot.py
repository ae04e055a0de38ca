"""A numbered place in a fleet, and the actor that fills it now: what it told, how it ended."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)

from buffer.lost_gpu import telling_line

# Ray may take a minute to see that a node is lost.
_DOUBT_S = 120.0
_LONGEST_REASON = 200
LOST = (RayActorError, OutOfMemoryError)
"""What Ray raises of a call whose actor has ended; the second where its memory monitor ended it."""

State = Literal["placing", "building", "working", "draining", "down"]
"""Of an actor: Ray looks for a place, or asks its autoscaler for one; models are loaded; at work;
finishes its batch before it ends; has ended, or is out of reach, and is replaced soon."""


@dataclass(frozen=True)
class Seen:
    """An actor when it last answered.

    Args:
        stats: its worker's counters since the start.
    """

    state: State
    stats: Mapping[str, float | str]


@dataclass
class Slot:
    """One numbered place in the fleet and the actor that fills it now, if any."""

    name: str
    actor: Any = None
    running: Any = None  # the reference that `run` will fill
    asked: Any = None  # the reference that `stats` will fill
    stats: Mapping[str, float | str] | None = None
    building_since: float | None = None
    working_since: float | None = None
    due_at: float = 0.0  # an empty slot is filled from then on; a draining actor killed
    failures: int = 0
    doubted_at: float | None = None

    def has_ended(self) -> bool:
        return bool(ray.wait([self.running], timeout=0)[0])

    def is_in_doubt(self) -> bool:
        """Whether Ray cannot reach an actor that seems to have ended, and does not know why yet.

        It is asked again until it knows: a new actor might be sent to the very node that is lost.
        """
        if not isinstance(error_of_end(self.running), ActorUnavailableError):
            return False
        now = time.monotonic()
        self.doubted_at = self.doubted_at or now
        if now - self.doubted_at > _DOUBT_S:
            return False
        self.running = self.actor.stats.remote()
        return True

    def kill(self) -> None:
        ray.kill(self.actor)
        self.actor = self.running = self.asked = self.stats = None
        self.building_since = self.working_since = self.doubted_at = None

    def glance(self) -> None:
        """Takes an answer that has come, and asks again."""
        if self.actor is None:
            return
        if self.asked is not None and ray.wait([self.asked], timeout=0)[0]:
            self.take(value_or_none(self.asked))
            self.asked = None
        if self.asked is None:
            self.asked = self.actor.stats.remote()

    def take(self, stats: Mapping[str, float | str] | None) -> None:
        """Its newest answer; None: it gave none."""
        self.stats = stats or self.stats
        if self.state == "building":
            self.building_since = self.building_since or time.monotonic()
        if self.state == "working":
            self.working_since = self.working_since or time.monotonic()

    @property
    def state(self) -> State:
        if self.actor is None or self.doubted_at is not None:
            return "down"
        if self.stats is None:
            return "placing"
        return "working" if len(self.stats) > 1 else "building"


def value_or_none(ref: Any) -> Any:
    """What an actor answered, in the form that it has; None where it could not."""
    try:
        return ray.get(ref)
    except RayError:
        return None


def is_node_lost(error: Exception | None) -> bool:
    """Whether an actor ended with the machine that it was on; Ray tells that in words only."""
    return isinstance(error, ActorDiedError) and "node has died" in str(error)


def error_of_end(running: Any) -> Exception | None:
    try:
        ray.get(running)
    except RayError as error:
        return error
    return None


def reason_of_end(error: Exception | None) -> str:
    if error is None:
        return "it returned without being asked to stop"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {telling_line(str(cause))[:_LONGEST_REASON]}"
