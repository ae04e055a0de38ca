"""The noise schedule of Stable Diffusion's family, and the time grids of its samplers.

x_t = alpha_t x_0 + sigma_t eps, with alpha_t² the cumulative product of 1 − beta and
alpha_t² + sigma_t² = 1. Tables are float64; what leaves them is cast to the asker's dtype.
Shape suffixes: B rows, T training timesteps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Cumulative alphas over the training timesteps.

    Args:
        alphas_cumprod_T: float64 [T], falling, in (0, 1).
    """

    alphas_cumprod_T: Tensor
    _tables: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """The schedule that a diffusers scheduler config describes.

        Raises:
            ValueError: a beta schedule or prediction type that the samplers here do not have.
        """
        prediction = config.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise ValueError(
                f"the model predicts {prediction!r}; only 'epsilon' models can be fine-tuned"
            )
        start, end = config["beta_start"], config["beta_end"]
        steps = config.get("num_train_timesteps", 1000)
        kind = config["beta_schedule"]
        if kind == "scaled_linear":
            betas_T = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        elif kind == "linear":
            betas_T = torch.linspace(start, end, steps, dtype=torch.float64)
        else:
            raise ValueError(f"beta_schedule {kind!r}; allowed are 'scaled_linear' and 'linear'")
        return cls(torch.cumprod(1 - betas_T, dim=0))

    @property
    def num_train_timesteps(self) -> int:
        return self.alphas_cumprod_T.shape[0]

    def alpha_sigma(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, shaped [B, 1, …] to broadcast over `like`, in its dtype.

        Where both are on one device nothing is copied to it, which would wait for its work.
        """
        alpha_bar_B = self._table(t_B.device)[t_B].to(like.device)
        shape = (-1, *([1] * (like.dim() - 1)))
        alpha = alpha_bar_B.sqrt().reshape(shape)
        sigma = (1 - alpha_bar_B).sqrt().reshape(shape)
        return alpha.to(like.dtype), sigma.to(like.dtype)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.alphas_cumprod_T.to(device)
        return self._tables[device]


def add_noise(x0: Tensor, noise: Tensor, t_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t noise, row by row."""
    alpha, sigma = schedule.alpha_sigma(t_B, x0)
    return alpha * x0 + sigma * noise


def predict_x0(x: Tensor, eps: Tensor, t_B: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The clean latent that a noise prediction implies (Tweedie's estimate)."""
    alpha, sigma = schedule.alpha_sigma(t_B, x)
    return (x - sigma * eps) / alpha


def ddim_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """The 'leading' grid with offset 1: 50 steps are 981, 961, …, 21, 1.

    Raises:
        ValueError: steps that do not fit the training grid.
    """
    if not 1 <= num_steps < num_train_timesteps:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 to {num_train_timesteps - 1}")
    stride = num_train_timesteps // num_steps
    return [i * stride + 1 for i in reversed(range(num_steps))]


def consistency_timesteps(
    num_steps: int, num_train_timesteps: int = 1000, original_steps: int = 50
) -> list[int]:
    """The grid of latent consistency models: 1 step is 999; 2 are 999, 499.

    Evenly spaced picks of the reversed distillation grid 999, 979, …, 19 (diffusers'
    LCMScheduler).
    """
    if not 1 <= num_steps <= original_steps:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 to {original_steps}")
    stride = num_train_timesteps // original_steps
    reversed_grid = [(i + 1) * stride - 1 for i in reversed(range(original_steps))]
    return [reversed_grid[i * original_steps // num_steps] for i in range(num_steps)]


def trailing_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """The 'trailing' grid, which begins at the noisiest level: 1 step is 999; 4 are 999, 749, 499
    and 249 (Lin et al. 2024, table 2).

    Raises:
        ValueError: steps that do not fit the training grid.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 to {num_train_timesteps}")
    stride = num_train_timesteps / num_steps
    return [round(num_train_timesteps - i * stride) - 1 for i in range(num_steps)]
