"""A chain of 50 steps beside diffusers': drawn by our sampler, and a scheduler with our table."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actors.rollout import ManyStepPolicy
from actors.sampling import sample_ddpm
from learner.diffusion.schedule import NoiseSchedule


def take_table(scheduler: Any, schedule: NoiseSchedule) -> None:
    """Has a DDIMScheduler reckon with our alphas: its own, in float32, end 2e-5 away from them."""
    scheduler.alphas_cumprod = schedule.alphas_cumprod_T
    scheduler.final_alpha_cumprod = schedule.alphas_cumprod_T[0]


@torch.no_grad()
def clean_of(policy: ManyStepPolicy, prompt: str, noise: Sequence[Tensor]) -> Tensor:
    """The clean latent, in float32: records have it in half precision.

    Args:
        noise: the first latent, and what each of 50 steps adds.
    """
    return sample_ddpm(
        policy.network,
        policy.schedule,
        policy.encode(["", prompt]),
        noise[0],
        noise[1:],
        num_steps=50,
        guidance_scale=policy.guidance_scale,
        keep={50},
    )[50]
