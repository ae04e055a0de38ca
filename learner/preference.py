"""Learning a score from rewards: pairwise preferences and regression, as pure tensor maths.

A group is the samples of one prompt; only samples of one group and one sampling step are ever
compared (`buffer.sampling` says which).
Shape suffixes: G groups, N samples of a group, K scored steps, P pairs, H heads.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from buffer.sampling import Pairs


def bradley_terry_loss(
    winner_PH: Tensor, loser_PH: Tensor, weight_PH: Tensor, *, total: Tensor | None = None
) -> Tensor:
    """−log σ(R_w − R_l) over pairs (Bradley & Terry 1952; LaSRO's surrogate loss).

    Args:
        weight_PH: of each pair for each head.
        total: what the weighted sum is divided by, by default the sum of the weights. Ranks give
            the mean of their sums; the mean of their losses is then that of all pairs.

    Returns:
        Scalar: the weighted mean; 0 without any weight.
    """
    losses_PH = -F.logsigmoid(winner_PH - loser_PH)
    total = weight_PH.sum() if total is None else total
    return (losses_PH * weight_PH).sum() / total.clamp(min=1e-12)


def pair_weights(pairs: Pairs, counts_GH: Tensor) -> Tensor:
    """Weights [P, H] by which every group and step counts alike, however many pairs it has.

    Args:
        counts_GH: how often each head's resample holds each group.
    """
    key_P = np.stack([pairs.group, pairs.position])
    _, inverse_P, count_U = np.unique(key_P, axis=1, return_inverse=True, return_counts=True)
    share_P = torch.from_numpy(1.0 / count_U[inverse_P]).float()
    return share_P[:, None] * counts_GH[torch.from_numpy(pairs.group)]


def regression_loss(
    scores_GNKH: Tensor,
    targets_GNK: Tensor,
    counts_GH: Tensor,
    *,
    total: Tensor | None = None,
) -> Tensor:
    """Squared error of every head to standardised rewards, mean over groups, samples, heads.

    Args:
        total: as in `bradley_terry_loss`, of the counts.
    """
    errors_GH = ((scores_GNKH - targets_GNK[..., None]) ** 2).mean(dim=(1, 2))
    total = counts_GH.sum() if total is None else total
    return (errors_GH * counts_GH).sum() / total.clamp(min=1e-12)


def members(scores_GNKx: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Scores of the pairs' winners and losers, [P, …] each."""
    group_P, position_P = torch.from_numpy(pairs.group), torch.from_numpy(pairs.position)
    winner_P, loser_P = torch.from_numpy(pairs.winner), torch.from_numpy(pairs.loser)
    return scores_GNKx[group_P, winner_P, position_P], scores_GNKx[group_P, loser_P, position_P]


def pair_accuracy(scores_GNK: Tensor, pairs: Pairs, position: int | None = None) -> float:
    """Share of pairs that a score orders as the reward does; a tied score counts one half.

    Args:
        position: only pairs of this scored position.

    Returns:
        0.5 is chance; nan without any pair.
    """
    winner_P, loser_P = members(scores_GNK, pairs)
    if position is not None:
        here_P = torch.from_numpy(pairs.position == position)
        winner_P, loser_P = winner_P[here_P], loser_P[here_P]
    right_P = (winner_P > loser_P).float() + 0.5 * (winner_P == loser_P).float()
    return float(right_P.mean())


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
