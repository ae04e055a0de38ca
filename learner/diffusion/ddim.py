"""One denoising step as a Gaussian policy, in the DDIM family: pure tensor maths.

Shape suffixes: B rows; tensors without one are [B, C, H, W].
With eta = 1 on the 50-step grid this is what the papers call "DDPM, 50 steps".
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from learner.diffusion.schedule import NoiseSchedule

Reduce = Literal["sum", "mean", "sqdf"]


def guided(eps_cond: Tensor, eps_uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance; scale 1 is the conditional prediction."""
    return eps_uncond + scale * (eps_cond - eps_uncond)


@dataclass(frozen=True)
class DdimSteps:
    """What steps of rows take beside latents and predicted noise; each number is [B, 1, 1, 1].

    Song et al. 2021 (DDIM), eq. 12 and 16.

    Args:
        alpha, sigma: of the states before.
        next_alpha: of the states after.
        direction: what of the predicted noise stays in the state after.
        std: of the noise that is added.
    """

    alpha: Tensor
    sigma: Tensor
    next_alpha: Tensor
    direction: Tensor
    std: Tensor

    @classmethod
    def between(
        cls,
        t_B: Tensor,
        prev_t_B: Tensor,
        schedule: NoiseSchedule,
        like: Tensor,
        eta: float = 1.0,
    ) -> "DdimSteps":
        """From `t_B` to `prev_t_B`.

        Args:
            prev_t_B: may be 0, the cleanest training level.
            like: latents, whose device and type the numbers have.
        """
        alpha, sigma = schedule.alpha_sigma(t_B, like)
        next_alpha, next_sigma = schedule.alpha_sigma(prev_t_B, like)
        std = eta * next_sigma / sigma * (1 - (alpha / next_alpha) ** 2).sqrt()
        direction = (next_sigma**2 - std**2).clamp(min=0).sqrt()
        return cls(alpha, sigma, next_alpha, direction, std)

    def row(self, number: int) -> "DdimSteps":
        """One of them; it is the same for all rows that it is asked about."""
        at = slice(number, number + 1)
        return DdimSteps(
            self.alpha[at], self.sigma[at], self.next_alpha[at], self.direction[at], self.std[at]
        )

    def moments(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, C, H, W] and standard deviation of the states after."""
        x0 = (x - self.sigma * eps) / self.alpha
        return self.next_alpha * x0 + self.direction * eps, self.std


def ddim_moments(
    x: Tensor, eps: Tensor, t_B: Tensor, prev_t_B: Tensor, schedule: NoiseSchedule, eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean [B, C, H, W] and standard deviation [B, 1, 1, 1] of x at `prev_t_B` given x at `t_B`.

    `prev_t_B` may be 0, the cleanest training level; the last step of the 50-step grid goes there.
    """
    return DdimSteps.between(t_B, prev_t_B, schedule, x, eta).moments(x, eps)


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
