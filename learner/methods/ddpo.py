"""Policy gradients of denoising steps, as pure functions: DDPO, PPO with a KL, and RLCM.

A step of a sampler is an action: a Gaussian whose mean the network gives. Black et al. 2024 (DDPO,
arXiv:2305.13301) raise the log-probability of steps whose picture earned more than others did, cut
by PPO's clip; Oertell et al. 2024 (RLCM, arXiv:2404.03673) do so with the re-noising of a
consistency model. A ratio of probabilities is of one policy version to the next: rows must come
from the version before the update.
Shape suffixes: G groups, N members of a group, B rows; means are [B, C, H, W].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["group", "batch"]
_LEAST_STD = 1e-6


def advantages(reward_GN: Tensor, *, baseline: Baseline, clip: float) -> Tensor:
    """How much better each picture is than what it is compared with, in deviations, [G, N].

    Args:
        baseline: the mean and deviation of a prompt's own group, or of all pictures. Where those
            are all alike, nobody is better: 0.
        clip: largest advantage, either way.
    """
    reward_GN = reward_GN.double()
    over = (1,) if baseline == "group" else (0, 1)
    difference = reward_GN - reward_GN.mean(dim=over, keepdim=True)
    std = difference.square().mean(dim=over, keepdim=True).sqrt()
    ratio = torch.where(std > _LEAST_STD, difference / std.clamp(min=_LEAST_STD), 0.0)
    return ratio.clamp(-clip, clip).float()


def log_ratio(mean: Tensor, old_mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """log π(x') − log π_old(x') of the action x' = old_mean + std · noise, mean over C·H·W, [B].

    The mean over dimensions, and not the sum, is what DDPO's clip of 1e-4 is for. From the noise
    itself nothing cancels where a step is narrow, and equal means give 0 exactly.

    Args:
        std: of both, [B, 1, 1, 1], above 0.
    """
    moved = (mean - old_mean) / std
    return (moved * (noise - 0.5 * moved)).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Clipped:
    """PPO's objective of rows.

    Args:
        loss_B: to be minimised.
        share: of the rows whose ratio the clip holds, so that they have no gradient.
    """

    loss_B: Tensor
    share: float


def clipped_loss(log_ratio_B: Tensor, advantage_B: Tensor, clip: float) -> Clipped:
    """−min(r A, clamp(r, 1 ± clip) A), as in Schulman et al. 2017, eq. 7."""
    ratio_B = log_ratio_B.exp()
    plain_B = ratio_B * advantage_B
    cut_B = ratio_B.clamp(1 - clip, 1 + clip) * advantage_B
    held_B = (cut_B < plain_B).detach()
    return Clipped(-torch.minimum(plain_B, cut_B), float(held_B.float().mean()))
