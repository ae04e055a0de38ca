"""Consistency models: the map from any noise level to the clean latent, and its distillation.

Song et al. 2023 (consistency models), Luo et al. 2023 (latent consistency models).
Shape suffixes: B rows, E embedding; tensors without one are [B, C, H, W].
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learner.diffusion.schedule import NoiseSchedule, predict_x0

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
# x, t_B -> eps
NoiseModel = Callable[[Tensor, Tensor], Tensor]


def boundary_scalings(t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out, broadcastable over `like`: 1 and 0 at t = 0, so f(x, 0) = x."""
    scaled = t_B.to(like.device, torch.float64) * TIMESTEP_SCALING
    scaled = scaled.reshape(-1, *([1] * (like.dim() - 1)))
    norm = scaled**2 + SIGMA_DATA**2
    return (SIGMA_DATA**2 / norm).to(like.dtype), (scaled / norm.sqrt()).to(like.dtype)


def consistency_prediction(x: Tensor, eps: Tensor, t_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """f(x, t) = c_skip x + c_out x0(eps): the clean latent in one call."""
    c_skip, c_out = boundary_scalings(t_B, x)
    return c_skip * x + c_out * predict_x0(x, eps, t_B, schedule)


def guidance_embedding(guidance_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of w = guidance_scale − 1, float32 [B, dim].

    Models with `time_cond_proj_dim` take the guidance scale as this input, not as CFG.
    """
    half = dim // 2
    exponents_E = torch.arange(half, dtype=torch.float32, device=guidance_B.device)
    frequencies_E = torch.exp(exponents_E * -(math.log(10000.0) / (half - 1)))
    angles_BE = 1000.0 * guidance_B.float()[:, None] * frequencies_E[None, :]
    embedding_BE = torch.cat([angles_BE.sin(), angles_BE.cos()], dim=1)
    return torch.nn.functional.pad(embedding_BE, (0, dim - 2 * half))


def distillation_times(
    index_B: Tensor, num_train_timesteps: int = 1000, original_steps: int = 50
) -> tuple[Tensor, Tensor]:
    """Start and end timestep of a distillation step: grid point `index` and one step cleaner."""
    stride = num_train_timesteps // original_steps
    start_B = (index_B + 1) * stride - 1
    return start_B, (start_B - stride).clamp(min=0)


def teacher_step(
    x: Tensor, eps: Tensor, start_B: Tensor, end_B: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """One deterministic DDIM step of the teacher, by its guided ε, from `start_B` to `end_B`."""
    x0 = predict_x0(x, eps, start_B, schedule)
    alpha, sigma = schedule.alpha_sigma(end_B, x)
    return alpha * x0 + sigma * eps


def pseudo_huber(difference: Tensor, c: float = 0.001) -> Tensor:
    """sqrt(d² + c²) − c averaged over each row, float [B]."""
    return ((difference**2 + c**2).sqrt() - c).flatten(1).mean(dim=1)


def distillation_loss(
    eps: Tensor,
    target: NoiseModel,
    x_start: Tensor,
    x_end: Tensor,
    start_B: Tensor,
    end_B: Tensor,
    schedule: NoiseSchedule,
) -> Tensor:
    """Latent consistency distillation: f(x_start) pulled to the target's f(x_end), float [B].

    Args:
        eps: the student's, at `x_start`.
        target: gets no gradient here.
        x_end: the teacher's step from `x_start`.
    """
    prediction = consistency_prediction(x_start, eps, start_B, schedule)
    with torch.no_grad():
        goal = consistency_prediction(x_end, target(x_end, end_B), end_B, schedule)
    return pseudo_huber(prediction - goal)
