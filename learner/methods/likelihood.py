"""Learning from pictures that the policy made itself, by how well it denoises them.

GORS (Huang et al. 2023, T2I-CompBench, arXiv:2307.06350) fine-tunes on those with a high reward,
each weighted by it; GORS-LCM does so with the distillation loss of a consistency model.
Diffusion-DPO (Wallace et al. 2024, arXiv:2311.12908) prefers the better picture of a pair to the
worse; PSO (Miao et al. 2025, arXiv:2410.03190) the steps that led there, for models of few steps.
Shape suffixes: N trajectories, B rows or pairs, G groups, M members; tensors without one are
[B, C, H, W].
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from buffer.sampling import Pairs, best_worst_pairs
from learner.methods.uninformed import no_signal


def kept_rows(
    reward_N: np.ndarray, version_N: np.ndarray, *, threshold: float | None, share: float
) -> np.ndarray:
    """Trajectories that are good enough to learn from, int64.

    Of equal rewards the newest are kept. Where many reach the highest there is, the oldest would
    be kept for ever, and nothing be learned from what the policy makes by now.

    Args:
        version_N: of the policy that made each; rows of one version are in the order of tickets.
        threshold: reward from which they are; None: the best `share` of them, at least one.
    """
    if threshold is not None:
        return np.flatnonzero(reward_N >= threshold)
    count = max(1, round(share * len(reward_N)))
    # lexsort's last key is its first: reward, then version, then ticket.
    best_first_N = np.lexsort((-np.arange(len(reward_N)), -version_N, -reward_N))
    return np.sort(best_first_N[:count])


def squared_error(eps: Tensor, noise: Tensor) -> Tensor:
    """Of a noise prediction, mean over C·H·W, [B]."""
    return (eps - noise).square().flatten(1).mean(dim=1)


def reward_weighted(error_B: Tensor, reward_B: Tensor) -> Tensor:
    """mean(r · error): GORS. A reward below 0 would push the policy away from its picture: 0."""
    return (reward_B.clamp(min=0) * error_B).mean()


def dpo_loss(
    winner_B: Tensor, loser_B: Tensor, ref_winner_B: Tensor, ref_loser_B: Tensor, beta: float
) -> Tensor:
    """−log σ(−β/2 ((e_w − e_w,ref) − (e_l − e_l,ref))), Diffusion-DPO's eq. 14.

    Args:
        winner_B: squared errors of a pair; both latents of a pair must have been noised with one
            noise, to one time, for the policy and for the reference.
    """
    difference_B = (winner_B - ref_winner_B) - (loser_B - ref_loser_B)
    return -F.logsigmoid(-0.5 * beta * difference_B).mean()


def pso_loss(
    winner_B: Tensor, loser_B: Tensor, weight_B: Tensor, *, beta: float, clip: float
) -> Tensor:
    """−log σ(β (log ρ_w − log ρ_l)), each ratio to the reference within 1 ± clip.

    Args:
        winner_B: log ρ of a step on the way to the better picture of a pair.
        weight_B: of the step, where not all of a trajectory are drawn alike.
    """
    low, high = float(np.log1p(-clip)), float(np.log1p(clip))
    difference_B = winner_B.clamp(low, high) - loser_B.clamp(low, high)
    return -(weight_B * F.logsigmoid(beta * difference_B)).mean()


def preferred_pairs(reward_GM: np.ndarray) -> Pairs:
    """The best of every group against its worst, where there is something to prefer.

    Raises:
        NothingToLearnError: in no group there is.
    """
    pairs = best_worst_pairs(reward_GM[:, :, None])
    if not len(pairs):
        raise no_signal(
            "in no group one picture is better than another, so there is nothing to prefer"
        )
    return pairs
