"""One batch of latent consistency distillation (Luo et al. 2023), alike for anchor and GORS-LCM.

Shape suffixes: B rows; latents are [B, C, H, W].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.diffusion.consistency import distillation_loss, distillation_times, teacher_step
from learner.diffusion.schedule import NoiseSchedule, add_noise
from learner.policy.denoiser import Network, guided_call
from learner.policy.text import Text

NUM_TIMES = 50
"""Of the grid that a consistency model is distilled on; an index is below it."""


@dataclass(frozen=True)
class Distilled:
    """Noised latents, one teacher step on, and their text."""

    x_start: Tensor
    start_B: Tensor
    x_end: Tensor
    end_B: Tensor
    text: Text

    def __len__(self) -> int:
        return len(self.text)


@torch.no_grad()
def distilled(
    teacher: Network,
    latents: Tensor,
    noise: Tensor,
    index_B: Tensor,
    text: Text,
    empty: Text,
    schedule: NoiseSchedule,
    *,
    guidance_scale: float,
) -> Distilled:
    """Where the guided teacher's step leads from noised latents.

    Args:
        index_B: of the time on the grid, below `NUM_TIMES`.
    """
    start_B, end_B = distillation_times(index_B, schedule.num_train_timesteps)
    x_start = add_noise(latents, noise, start_B, schedule)
    eps = guided_call(teacher, x_start, start_B, text, empty, guidance_scale)
    x_end = teacher_step(x_start, eps, start_B, end_B, schedule)
    return Distilled(x_start, start_B, x_end, end_B, text)


def distillation_error(
    eps: Tensor,
    target: Network,
    batch: Distilled,
    guidance: Tensor | None,
    schedule: NoiseSchedule,
) -> Tensor:
    """How far the policy's clean latent is from the target's one step on, [B].

    Args:
        eps: the policy's, at the start.
        target: the policy itself, which gets no gradient here.
    """

    def goal(x: Tensor, t_B: Tensor) -> Tensor:
        return target(x, t_B, batch.text, guidance)

    ends = (batch.x_start, batch.x_end, batch.start_B, batch.end_B)
    return distillation_loss(eps, goal, *ends, schedule)
