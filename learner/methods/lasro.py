"""LaSRO's policy objective: reward through a latent surrogate, anchored by distillation.

Source: Jia et al., "Reward Fine-Tuning Two-Step Diffusion Models via Learning Differentiable
Latent-Space Surrogate Reward", CVPR 2025. The paper's L = c·L_lcm + Σ_k c_k S[R(z_k, c)]; the
form of S is not public, ours is below. Knows nothing of engines, Ray or Redis.
Shape suffixes: B rows; tensors without one are [B, C, H, W].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# S divides by the largest deviation seen; this keeps the first batch of equal scores finite.
_EPSILON = 1e-6


@dataclass(frozen=True)
class RewardScale:
    """Running mean and largest deviation of one step's surrogate reward.

    Args:
        mean: exponential moving average; None before the first batch.
        largest: the largest |R − mean| so far, decaying slowly so that an outlier is forgotten.
    """

    mean: float | None = None
    largest: float = 0.0

    def seen(self, rewards_B: Tensor, *, decay: float = 0.95) -> "RewardScale":
        """The scale after one more batch; takes no gradient."""
        batch = rewards_B.detach().float()
        batch_mean = float(batch.mean())
        mean = batch_mean if self.mean is None else decay * self.mean + (1 - decay) * batch_mean
        deviation = float((batch - mean).abs().max())
        return RewardScale(mean, max(deviation, self.largest * 0.99))

    def before(self, seen: "RewardScale") -> "RewardScale":
        """What a batch is squashed by: one that had taken it in would never clip a row of it.

        Args:
            seen: with that batch, for the very first one.
        """
        return seen if self.mean is None else self


def squash(rewards_B: Tensor, scale: RewardScale) -> tuple[Tensor, float]:
    """S[R] = clip((R − mean) / (largest + eps), −1, 1), and the share of clipped rows.

    Clipped rows get no gradient: a brake on rewards far outside what was seen.
    """
    assert scale.mean is not None, "call seen() with a batch first"
    normalised_B = (rewards_B - scale.mean) / (scale.largest + _EPSILON)
    clipped = float((normalised_B.detach().abs() > 1).float().mean())
    return normalised_B.clamp(-1, 1), clipped


def reward_loss(squashed: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """−Σ_k c_k mean S[R_k]: minimising it raises the reward."""
    terms = [-c * rewards_B.mean() for c, rewards_B in zip(weights, squashed, strict=True)]
    return torch.stack(terms).sum()


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """d loss / d parameter of each, zeros where the loss does not reach; keeps the graph and
    touches no .grad."""
    return torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)


def anchor_weight(anchor_norm: float, reward_norm: float, ratio: float) -> float:
    """c such that the anchor's gradient is `ratio` times as long as the reward's."""
    return ratio * reward_norm / max(anchor_norm, 1e-12)
