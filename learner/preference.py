"""Learning a score from rewards: pairwise preferences and regression, as pure tensor maths.

A group is the samples of one prompt; only samples of one group and one sampling step are ever
compared. Shape suffixes: G groups (of one prompt and step), N samples of a group, H heads.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Pairs = Literal["best_worst", "all"]


def ordered_pairs(rewards_GN: Tensor, pairs: Pairs) -> Tensor:
    """Weights float32 [G, N, N]: > 0 at (i, j) where sample i is preferred over sample j.

    Ties are no pairs. The weights of a group that has any pair sum to 1.

    Args:
        pairs: 'best_worst' keeps one pair a group, the first argmax over the first argmin
            (LaSRO); 'all' keeps every pair with a reward gap.
    """
    better_GNN = rewards_GN[:, :, None] > rewards_GN[:, None, :]
    if pairs == "best_worst":
        best_GN = F.one_hot(rewards_GN.argmax(dim=1), rewards_GN.shape[1])
        worst_GN = F.one_hot(rewards_GN.argmin(dim=1), rewards_GN.shape[1])
        better_GNN = better_GNN & (best_GN[:, :, None] * worst_GN[:, None, :]).bool()
    weights_GNN = better_GNN.float()
    return weights_GNN / weights_GNN.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def bradley_terry_loss(scores_GNH: Tensor, weights_GNN: Tensor, groups_GH: Tensor) -> Tensor:
    """−log σ(R_i − R_j) over preferred pairs (Bradley & Terry 1952; LaSRO's surrogate loss).

    Args:
        weights_GNN: of `ordered_pairs`.
        groups_GH: how often each head counts each group: ones, or a bootstrap resample.

    Returns:
        Scalar: mean over the groups that have a pair, then over heads; 0 without any pair.
    """
    margins_GNNH = scores_GNH[:, :, None] - scores_GNH[:, None, :]
    losses_GH = (weights_GNN[..., None] * -F.logsigmoid(margins_GNNH)).sum(dim=(1, 2))
    counts_GH = groups_GH * (weights_GNN.sum(dim=(1, 2)) > 0).float()[:, None]
    return (losses_GH * counts_GH).sum() / counts_GH.sum().clamp(min=1)


def regression_loss(scores_GNH: Tensor, targets_GN: Tensor, groups_GH: Tensor) -> Tensor:
    """Squared error of every head to standardised rewards, mean over groups, samples, heads."""
    errors_GNH = (scores_GNH - targets_GN[..., None]) ** 2
    return (errors_GNH.mean(dim=1) * groups_GH).sum() / groups_GH.sum().clamp(min=1)


@dataclass(frozen=True)
class PairAccuracy:
    """How many preferred pairs a score orders rightly."""

    right: float
    total: int

    @property
    def share(self) -> float:
        """0.5 is chance; nan without any pair."""
        return self.right / self.total if self.total else float("nan")


def pair_accuracy(scores_GN: Tensor, rewards_GN: Tensor, pairs: Pairs = "all") -> PairAccuracy:
    """Pairs ordered as the reward orders them; a tied score counts one half."""
    preferred_GNN = ordered_pairs(rewards_GN, pairs) > 0
    margins = (scores_GN[:, :, None] - scores_GN[:, None, :])[preferred_GNN]
    right = (margins > 0).float() + 0.5 * (margins == 0).float()
    return PairAccuracy(float(right.sum()), margins.numel())


def bootstrap_counts(num_groups: int, heads: int, seeds_G: Tensor) -> Tensor:
    """How often each head's resample holds each group, float32 [G, H], Poisson(1).

    Args:
        seeds_G: one int64 a group; a group keeps its counts for life, whatever batch it is in.
    """
    if heads == 1:
        return torch.ones(num_groups, 1)
    rows = [
        torch.poisson(torch.ones(heads), generator=torch.Generator().manual_seed(int(seed)))
        for seed in seeds_G
    ]
    return torch.stack(rows)


def pessimistic(scores_BH: Tensor, pessimism: float) -> Tensor:
    """Mean over heads minus `pessimism` standard deviations, [B]: wary where heads disagree."""
    if scores_BH.shape[1] == 1:
        return scores_BH[:, 0]
    return scores_BH.mean(dim=1) - pessimism * scores_BH.std(dim=1)
