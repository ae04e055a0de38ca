"""Methods in the alternation whose policy steps start from replayed states."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from learner.groups import ScoredGroups
from learner.seat import Seat
from learner.states import StateBatch, StateReplay

_DRAWS = 2
"""The stream of random numbers that decides which states are drawn."""


class StatePolicy(Protocol):
    """A policy that is improved from states."""

    @property
    def steps_taken(self) -> int:
        """Updates so far."""
        ...

    def step(self, batch: StateBatch) -> dict[str, float]:
        """One update from states of this rank; returns its metrics."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What a step carries to the next, beside weights and optimizer."""
        ...

    def from_json(self, state: dict[str, Any]) -> None:
        """Restores it."""
        ...


class StateSteps:
    """Implements `learner.methods.alternation.PolicySteps`.

    Args:
        batch: states of one step, over all ranks.
    """

    def __init__(self, policy: StatePolicy, states: StateReplay, batch: int, seat: Seat) -> None:
        self._policy = policy
        self._states = states
        self._batch = batch
        self._seat = seat

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Nothing: states come from the replay as they are needed."""

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Nothing: its steps are not of one version's samples alone."""

    @property
    def kind(self) -> str:
        return ""

    def step(self) -> dict[str, float]:
        rng = np.random.default_rng([self._seat.seed, _DRAWS, self._policy.steps_taken])
        return self._policy.step(self._states.draw(self._batch, rng, self._seat.share))

    def save(self, folder: Path) -> None:
        """Nothing that would not fit JSON."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.from_json(state)

    def state(self) -> dict[str, Any]:
        return self._policy.to_json()
