"""Methods in the alternation whose policy steps are of what they draw from the replay."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.random import Generator

from learner.groups import ScoredGroups
from learner.methods.updates import UpdatedPolicy
from learner.seat import Seat

_DRAWS = 2
"""The stream of random numbers that decides what is drawn."""
_Batch = TypeVar("_Batch")


class DrawnSteps(Generic[_Batch]):
    """Implements `learner.methods.alternation.PolicySteps`.

    Args:
        draw: this rank's rows of a step, from a generator that is alike on all ranks.
        check: raises NothingToLearnError where nothing that could be drawn tells anything.
    """

    def __init__(
        self,
        policy: UpdatedPolicy[_Batch],
        draw: Callable[[Generator], _Batch],
        seat: Seat,
        *,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._policy = policy
        self._draw = draw
        self._seat = seat
        self._check = check

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Nothing: rows come from the replay as they are needed."""

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Looks whether there is something to draw; it is not of one version's samples alone.

        Raises:
            NothingToLearnError: nothing of it tells anything.
        """
        self._check()

    @property
    def kind(self) -> str:
        return ""

    @property
    def steps_taken(self) -> int:
        return self._policy.steps_taken

    def step(self) -> dict[str, float]:
        rng = np.random.default_rng([self._seat.seed, _DRAWS, self._policy.steps_taken])
        return self._policy.step(self._draw(rng))

    def save(self, folder: Path) -> None:
        """Nothing that would not fit JSON."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.from_json(state)

    def state(self) -> dict[str, Any]:
        return self._policy.to_json()
