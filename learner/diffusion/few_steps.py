"""A few-step sampler's calls: each tells the clean latent, and all but the last add noise to it.

Two kinds of model are sampled in one to eight calls: consistency models, whose next latent is the
clean one noised again, and those that Euler's ancestral sampler draws, as SDXL-Turbo, whose next
latent keeps some of the noise that the network saw.
Shape suffixes: B rows; tensors without one are [B, C, H, W].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.diffusion.consistency import consistency_prediction
from learner.diffusion.schedule import (
    NoiseSchedule,
    consistency_timesteps,
    predict_x0,
    trailing_timesteps,
)

FewSteps = Literal["consistency", "ancestral"]


@dataclass(frozen=True)
class FewStepChain:
    """What both kinds share: the calls' times, and a step as a Gaussian.

    `x_i → z_i → x_{i+1} = mean(x_i, z_i) + std ξ_i`, the latent of the next call.
    """

    schedule: NoiseSchedule
    num_steps: int

    @property
    def timesteps(self) -> list[int]:
        """Of the calls, falling."""
        raise NotImplementedError

    @property
    def keeps_noise(self) -> bool:
        """Whether a next latent depends on the one before by more than the clean one between."""
        raise NotImplementedError

    def initial(self, noise: Tensor) -> Tensor:
        """The first call's latent, of standard normal noise."""
        raise NotImplementedError

    def clean(self, x: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """The clean latent that a call tells."""
        raise NotImplementedError

    def after(self, x: Tensor, clean: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, C, H, W] and standard deviation [B, 1, 1, 1] of the next call's latent.

        After the last call no noise is added to the picture; what is said to be, is at the call's
        own time.
        """
        raise NotImplementedError

    def noised(self, x: Tensor, clean: Tensor, step: int, noise: Tensor) -> Tensor:
        """The latent of call `step + 1`, all rows being at one step."""
        mean, std = self.after(x, clean, torch.full((len(x),), step))
        return mean + std * noise

    def times(self, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps of a call and of the noise that is added after it, int64 [B]."""
        grid = self.timesteps
        times = torch.tensor([*grid, grid[-1]])
        return times[step_B.cpu()], times[step_B.cpu() + 1]

    def moments(self, x: Tensor, eps: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """`after`, of the noise that a call tells."""
        t_B, _ = self.times(step_B)
        return self.after(x, self.clean(x, eps, t_B), step_B)


@dataclass(frozen=True)
class ConsistencyChain(FewStepChain):
    """Of a consistency model: `x_{i+1} = α z_i + σ ξ_i` (Luo et al. 2023, algorithm 3)."""

    @property
    def timesteps(self) -> list[int]:
        return consistency_timesteps(self.num_steps, self.schedule.num_train_timesteps)

    @property
    def keeps_noise(self) -> bool:
        return False

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def clean(self, x: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        return consistency_prediction(x, eps, t_B, self.schedule)

    def after(self, x: Tensor, clean: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
        _, next_t_B = self.times(step_B)
        alpha, sigma = self.schedule.alpha_sigma(next_t_B, x)
        return alpha * clean, sigma


@dataclass(frozen=True)
class AncestralChain(FewStepChain):
    """Of Euler's ancestral sampler without guidance, as SDXL-Turbo is drawn.

    With s = σ/α, a step goes to `α' (z + s_down ε + s_up ξ)`, s_up² = s'² (s² − s'²) / s² and
    s_down = s'² / s (Karras et al. 2022, k-diffusion). That is the step of DDIM with eta = 1, on
    the trailing grid and with the clean latent, not the cleanest training level, at its end.
    ε is that which `x` and `clean` tell.
    """

    @property
    def timesteps(self) -> list[int]:
        return trailing_timesteps(self.num_steps, self.schedule.num_train_timesteps)

    @property
    def keeps_noise(self) -> bool:
        return True

    def initial(self, noise: Tensor) -> Tensor:
        """Noise of the first call's own level, as if the picture below it were 0."""
        first_B = torch.full((len(noise),), self.timesteps[0])
        _, sigma = self.schedule.alpha_sigma(first_B, noise)
        return sigma * noise

    def clean(self, x: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        return predict_x0(x, eps, t_B, self.schedule)

    def after(self, x: Tensor, clean: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, and deviation by row, of the latent that the next call gets."""
        t_B, next_t_B = self.times(step_B)
        alpha, sigma = self.schedule.alpha_sigma(t_B, x)
        next_alpha, next_sigma = self.schedule.alpha_sigma(next_t_B, x)
        # s'/s; 1 after the last call, which then says to be noised from the picture alone.
        ratio = (next_sigma * alpha) / (next_alpha * sigma)
        is_last = (next_t_B == t_B).to(x.device).reshape(ratio.shape)
        ratio = ratio.masked_fill(is_last, 0.0)
        eps = (x - alpha * clean) / sigma
        return next_alpha * clean + next_sigma * ratio * eps, next_sigma * (1 - ratio**2).sqrt()


_KINDS: dict[FewSteps, type[FewStepChain]] = {
    "consistency": ConsistencyChain,
    "ancestral": AncestralChain,
}


def few_step_chain(kind: FewSteps, schedule: NoiseSchedule, num_steps: int) -> FewStepChain:
    """The sampler of a kind of model."""
    return _KINDS[kind](schedule, num_steps)
