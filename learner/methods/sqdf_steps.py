"""SQDF in the alternation: policy steps from replayed states."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learner.groups import ScoredGroups
from learner.methods.sqdf_policy import SqdfPolicy, SqdfState
from learner.seat import Seat
from learner.settings import Sqdf
from learner.states import StateReplay

_DRAWS = 2
"""The stream of random numbers that decides which states are drawn."""


class SqdfSteps:
    """Implements `learner.methods.alternation.PolicySteps`."""

    def __init__(self, settings: Sqdf, policy: SqdfPolicy, states: StateReplay, seat: Seat) -> None:
        self._settings = settings
        self._policy = policy
        self._states = states
        self._seat = seat

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Nothing: states come from the replay as they are needed."""

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Nothing: its steps are not of one version's samples alone."""

    @property
    def kind(self) -> str:
        return ""

    def step(self) -> dict[str, float]:
        rng = np.random.default_rng([self._seat.seed, _DRAWS, self._policy.state.step])
        batch = self._states.draw(self._settings.policy_batch, rng, self._seat.share)
        return self._policy.step(batch)

    def save(self, folder: Path) -> None:
        """Nothing that would not fit JSON."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.state = SqdfState(**state)

    def state(self) -> dict[str, Any]:
        return self._policy.state.to_json()
