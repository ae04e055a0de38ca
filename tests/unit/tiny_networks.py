"""A tiny random UNet, and what samplers are given with it."""

from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from learner.diffusion.noise import group_noise
from learner.diffusion.schedule import NoiseSchedule

SHAPE = (4, 8, 8)
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SCHEDULE = NoiseSchedule.from_config(CONFIG)


@cache
def tiny_unet(time_cond_proj_dim: int | None) -> UNet2DConditionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            time_cond_proj_dim=time_cond_proj_dim,
        ).eval()


def network(time_cond_proj_dim: int | None = None, unet: UNet2DConditionModel | None = None) -> Any:
    """The tiny UNet, or the one given, as samplers call it."""
    unet = unet or tiny_unet(time_cond_proj_dim)

    def predict(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        return unet(x_BCHW, t_B, prompts, timestep_cond=guidance_BE).sample

    return predict


def text_states(rows: int) -> Tensor:
    return torch.randn(rows, 5, 8, generator=torch.Generator().manual_seed(1))


def noises(count: int, rows: int = 2) -> list[Tensor]:
    return [group_noise(7, rows, SHAPE, stream) for stream in range(count)]
