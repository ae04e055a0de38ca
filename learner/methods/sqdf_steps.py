"""SQDF in the alternation: policy steps from replayed states, up the surrogate's standard score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from learner.groups import ScoredGroups
from learner.methods.sqdf_policy import RewardOf, SqdfPolicy, SqdfState
from learner.preference import pessimistic
from learner.seat import Seat
from learner.settings import Sqdf
from learner.states import StateReplay

_DRAWS = 2
"""The stream of random numbers that decides which states are drawn."""


class SqdfSteps:
    """Implements `learner.methods.alternation.PolicySteps`."""

    def __init__(
        self,
        settings: Sqdf,
        policy: SqdfPolicy,
        states: StateReplay,
        surrogate: nn.Module,
        seat: Seat,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._states = states
        self._surrogate = surrogate
        self._seat = seat

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Nothing: states come from the replay as they are needed."""

    def step(self) -> dict[str, float]:
        rng = np.random.default_rng([self._seat.seed, _DRAWS, self._policy.state.step])
        in_draw = self._settings.states.times == "discounted"
        discount = self._settings.discount if in_draw else 1.0
        batch = self._states.draw(self._settings.policy_batch, discount, rng, self._seat.share)
        # Its parameters stay out of the graph; what flows through it to the latents is wanted.
        self._surrogate.requires_grad_(False)
        metrics = self._policy.step(batch)
        self._surrogate.requires_grad_(True)
        return metrics

    def save(self, folder: Path) -> None:
        """Nothing that would not fit JSON."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.state = SqdfState(**state)

    def state(self) -> dict[str, Any]:
        return self._policy.state.to_json()


def surrogate_reward(surrogate: nn.Module, pessimism: float) -> RewardOf:
    """The surrogate's score of the clean latent that a chain ends in, as a reward."""

    def reward(x0: Tensor, text: Tensor) -> Tensor:
        final_B = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
        return pessimistic(surrogate(x0, text, final_B), pessimism)

    return reward
