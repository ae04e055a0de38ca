"""A chain of many small steps: their times, and what a record calls its latents.

State i is the latent before step i, from state 0 (pure noise) to state T,
the clean latent; step i goes from state i to state i + 1.
Shape suffixes: B rows; x is [B, C, H, W].
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from learner.diffusion.consistency import NoiseModel, consistency_prediction
from learner.diffusion.ddim import DdimSteps, ddim_moments
from learner.diffusion.schedule import NoiseSchedule, consistency_timesteps, ddim_timesteps


@dataclass(frozen=True)
class Chain:
    """The sampler's time grid by step number."""

    schedule: NoiseSchedule
    num_steps: int = 50

    @property
    def _times(self) -> int:
        return self.schedule.num_train_timesteps

    def times(self, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps of the states before and after a step, int64 [B]; 0 after the last one."""
        return self.state_times(step_B), self.state_times(step_B + 1)

    def state_times(self, state_B: Tensor) -> Tensor:
        """Timesteps of states, int64 [B]; 0 for the clean one."""
        return _state_grid(self.num_steps, self._times, state_B.device)[state_B]

    def moments(self, x: Tensor, eps: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, C, H, W] and standard deviation [B, 1, 1, 1] of the state after a step."""
        return ddim_moments(x, eps, *self.times(step_B), self.schedule)

    def steps(self, like: Tensor) -> list[DdimSteps]:
        """All of them, on the device of latents: whoever takes them one after the other copies
        nothing to it on the way, which would wait for the network there."""
        every_S = torch.arange(self.num_steps)
        steps = DdimSteps.between(*self.times(every_S), self.schedule, like)
        return [steps.row(step) for step in range(self.num_steps)]

    def steps_after(self, step_B: Tensor) -> Tensor:
        """k: how many steps come after each one; 0 after the last."""
        return self.num_steps - 1 - step_B

    def is_last(self, step_B: Tensor) -> Tensor:
        """Rows whose next state is the clean latent, bool [B]."""
        return step_B == self.num_steps - 1

    def consistency_times(self, state_B: Tensor) -> Tensor:
        """Where a consistency model takes a state: nearest on its grid of 50.

        Its grid has no time below 19, so the states nearest to the clean one are told 19.
        """
        grid = _consistency_grid(self._times, state_B.device)
        return grid[(self.state_times(state_B)[:, None] - grid).abs().argmin(dim=1)]

    def told_clean(self, model: NoiseModel, x: Tensor, state_B: Tensor) -> Tensor:
        """The clean latent that a consistency model tells of states, in one call."""
        t_B = self.consistency_times(state_B)
        return consistency_prediction(x, model(x, t_B), t_B, self.schedule)

    def clean_label(self, state: int) -> int:
        """Of the clean latent told of a state, among a record's; a state's label is its number."""
        return self.num_steps + 1 + state

    def noise_label(self, state: int) -> int:
        """Of the reference's noise at a state."""
        return 2 * self.num_steps + 2 + state


@cache
def _state_grid(num_steps: int, num_train_timesteps: int, device: torch.device) -> Tensor:
    """Timesteps of all states; made once a device, as making it there waits for its work."""
    steps = ddim_timesteps(num_steps, num_train_timesteps)
    return torch.tensor([*steps, 0], device=device)


@cache
def _consistency_grid(num_train_timesteps: int, device: torch.device) -> Tensor:
    """Likewise those that a consistency model was made for."""
    return torch.tensor(consistency_timesteps(50, num_train_timesteps), device=device)
