"""One denoising step as a Gaussian policy, in the DDIM family: pure tensor maths.

Shape suffixes: B rows; tensors without one are [B, C, H, W].
With eta = 1 on the 50-step grid this is what the papers call "DDPM, 50 steps".
"""

from typing import Literal

from torch import Tensor

from learner.diffusion.schedule import NoiseSchedule, predict_x0

Reduce = Literal["sum", "mean", "sqdf"]


def guided(eps_cond: Tensor, eps_uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance; scale 1 is the conditional prediction."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


def ddim_moments(
    x: Tensor, eps: Tensor, t_B: Tensor, prev_t_B: Tensor, schedule: NoiseSchedule, eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean [B, C, H, W] and standard deviation [B, 1, 1, 1] of x at `prev_t_B` given x at `t_B`.

    Song et al. 2021 (DDIM), eq. 12 and 16. `prev_t_B` may be 0, the cleanest training level;
    the last step of the 50-step grid goes there.
    """
    alpha, sigma = schedule.alpha_sigma(t_B, x)
    prev_alpha, prev_sigma = schedule.alpha_sigma(prev_t_B, x)
    std = eta * prev_sigma / sigma * (1 - (alpha / prev_alpha) ** 2).sqrt()
    x0 = predict_x0(x, eps, t_B, schedule)
    mean = prev_alpha * x0 + (prev_sigma**2 - std**2).clamp(min=0).sqrt() * eps
    return mean, std


def gaussian_kl(mean: Tensor, ref_mean: Tensor, std: Tensor, *, reduce: Reduce = "sum") -> Tensor:
    """KL(N(mean, std²) ‖ N(ref_mean, std²)) of one step, float [B].

    Args:
        std: > 0, broadcastable. The last consistency step is deterministic and has no density:
            leave it out.
        reduce: 'sum' is the true KL in nats; 'mean' divides by C·H·W (SEIKO); 'sqdf' is
            mean(Δ²)/std², twice 'mean' (SQDF's reference code).
    """
    squares = ((mean - ref_mean) / std) ** 2
    if reduce == "sum":
        return 0.5 * squares.flatten(1).sum(dim=1)
    if reduce == "mean":
        return 0.5 * squares.flatten(1).mean(dim=1)
    return squares.flatten(1).mean(dim=1)
