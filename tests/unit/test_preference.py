"""Ranking and regression losses, pair weights, bootstrap resamples and accuracy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from buffer.sampling import Pairs, best_worst_pairs, ordered_pairs
from learner.preference import (
    bootstrap_counts,
    bradley_terry_loss,
    members,
    pair_accuracy,
    pair_weights,
    pessimistic,
    regression_loss,
)

ONE_HEAD = torch.ones(2, 1)


def rewards(*groups: list[float]) -> np.ndarray:
    """[G, N, 1]"""
    return np.array(groups)[:, :, None]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def no_pairs() -> Pairs:
    return ordered_pairs(rewards([1.0, 1.0], [2.0, 2.0]))


# The ranking loss


def test_equal_scores_cost_ln_2() -> None:
    loss = bradley_terry_loss(column(0, 0), column(0, 0), torch.ones(2, 1))
    assert float(loss) == pytest.approx(math.log(2))


def test_a_lead_of_ln_3_costs_ln_4_over_3() -> None:
    loss = bradley_terry_loss(column(math.log(3)), column(0), torch.ones(1, 1))
    assert float(loss) == pytest.approx(math.log(4 / 3))


def test_only_the_difference_of_scores_counts() -> None:
    here = bradley_terry_loss(column(0.3), column(0.1), torch.ones(1, 1))
    there = bradley_terry_loss(column(7.3), column(7.1), torch.ones(1, 1))
    assert float(here) == pytest.approx(float(there), rel=1e-5)


def test_swapping_winner_and_loser_negates_the_gradient_at_equal_scores() -> None:
    def gradient(winner: int, loser: int) -> Tensor:
        scores = torch.zeros(2, 1, requires_grad=True)
        loss = bradley_terry_loss(scores[[winner]], scores[[loser]], torch.ones(1, 1))
        return torch.autograd.grad(loss, scores)[0]

    assert torch.equal(gradient(0, 1), -gradient(1, 0))


def test_the_gradient_raises_the_winner_and_lowers_the_loser() -> None:
    scores = torch.zeros(2, 1, requires_grad=True)
    bradley_terry_loss(scores[[0]], scores[[1]], torch.ones(1, 1)).backward()
    assert scores.grad is not None
    assert scores.grad.flatten().tolist() == [-0.5, 0.5]


def test_a_loss_without_pairs_is_zero_and_can_be_differentiated() -> None:
    scores = torch.zeros(2, 2, 1, 1, requires_grad=True)
    winner, loser = members(scores, no_pairs())
    loss = bradley_terry_loss(winner, loser, pair_weights(no_pairs(), ONE_HEAD))
    assert torch.autograd.grad(loss, scores)[0].abs().sum() == 0


def test_shares_of_a_batch_with_a_common_total_add_up_to_the_loss_of_the_whole() -> None:
    winner, loser, weight = column(0.1, 0.9, 0.4), column(0.5, 0.2, 0.3), column(1, 0.25, 0.5)
    whole = bradley_terry_loss(winner, loser, weight)
    parts = [
        bradley_terry_loss(winner[rows], loser[rows], weight[rows], total=weight.sum() / 2)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert float(torch.stack(parts).mean()) == pytest.approx(float(whole))


# Pair weights


def test_every_group_weighs_alike_however_many_pairs_it_has() -> None:
    pairs = ordered_pairs(rewards([1.0, 2.0, 3.0], [1.0, 1.0, 2.0]))
    weight_P = pair_weights(pairs, ONE_HEAD)[:, 0]
    of_group = [float(weight_P[torch.from_numpy(pairs.group == g)].sum()) for g in (0, 1)]
    assert of_group == pytest.approx([1.0, 1.0])


def test_every_step_of_a_group_weighs_alike() -> None:
    reward_GNK = np.array([[[1.0, 1.0], [2.0, 1.0], [3.0, 2.0]]])
    pairs = ordered_pairs(reward_GNK)
    weight_P = pair_weights(pairs, torch.ones(1, 1))[:, 0]
    of_step = [float(weight_P[torch.from_numpy(pairs.position == k)].sum()) for k in (0, 1)]
    assert of_step == pytest.approx([1.0, 1.0])


def test_a_pair_weighs_in_a_head_as_often_as_its_resample_holds_the_group() -> None:
    pairs = best_worst_pairs(rewards([1.0, 2.0], [3.0, 4.0]))
    counts_GH = torch.tensor([[0.0, 2.0], [1.0, 3.0]])
    assert torch.equal(pair_weights(pairs, counts_GH), counts_GH)


def test_a_group_whose_rewards_tie_gives_no_pair() -> None:
    pairs = best_worst_pairs(rewards([1.0, 1.0], [0.0, 1.0]))
    assert pairs.group.tolist() == [1]


def test_two_equal_members_of_a_group_are_no_pair() -> None:
    pairs = ordered_pairs(rewards([1.0, 1.0, 2.0]))
    assert sorted(zip(pairs.winner.tolist(), pairs.loser.tolist(), strict=True)) == [(2, 0), (2, 1)]


# Bootstrap


def test_a_group_keeps_its_counts_in_whatever_batch_it_comes() -> None:
    alone = bootstrap_counts(1, 4, torch.tensor([77]))
    among_others = bootstrap_counts(3, 4, torch.tensor([5, 77, 9]))
    assert torch.equal(alone[0], among_others[1])


def test_counts_are_poisson_with_mean_and_variance_1() -> None:
    counts = bootstrap_counts(4000, 4, torch.arange(4000) * 7919)
    assert (float(counts.mean()), float(counts.var())) == pytest.approx((1.0, 1.0), abs=0.05)


def test_heads_have_resamples_of_their_own() -> None:
    counts_GH = bootstrap_counts(2000, 2, torch.arange(2000) * 7919)
    assert abs(float(torch.corrcoef(counts_GH.T)[0, 1])) < 0.08


def test_a_single_head_sees_every_group_once() -> None:
    assert bootstrap_counts(3, 1, torch.tensor([1, 2, 3])).flatten().tolist() == [1, 1, 1]


# Accuracy


def test_a_score_that_orders_as_the_reward_does_is_right_throughout() -> None:
    reward_GNK = rewards([1.0, 2.0, 3.0], [5.0, 4.0, 0.0])
    assert pair_accuracy(torch.from_numpy(reward_GNK), ordered_pairs(reward_GNK)) == 1.0


def test_the_opposite_order_is_wrong_throughout() -> None:
    reward_GNK = rewards([1.0, 2.0, 3.0])
    assert pair_accuracy(torch.from_numpy(-reward_GNK), ordered_pairs(reward_GNK)) == 0.0


def test_tied_scores_are_half_right() -> None:
    pairs = ordered_pairs(rewards([1.0, 2.0, 3.0]))
    assert pair_accuracy(torch.zeros(1, 3, 1), pairs) == 0.5


def test_accuracy_of_a_position_looks_at_no_other() -> None:
    reward_GNK = np.array([[[1.0, 1.0], [2.0, 2.0]]])
    scores = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]])
    pairs = ordered_pairs(reward_GNK)
    assert [pair_accuracy(scores, pairs, k) for k in (0, 1)] == [1.0, 0.0]


def test_accuracy_without_any_pair_is_not_a_number() -> None:
    assert math.isnan(pair_accuracy(torch.zeros(2, 2, 1), no_pairs()))


# Pessimism


def test_pessimism_takes_standard_deviations_off_the_mean() -> None:
    scores_BH = torch.tensor([[1.0, 3.0]])
    assert float(pessimistic(scores_BH, 0.5)) == pytest.approx(2 - 0.5 * math.sqrt(2))


def test_without_pessimism_it_is_the_mean_of_the_heads() -> None:
    assert float(pessimistic(torch.tensor([[1.0, 4.0]]), 0.0)) == 2.5


def test_one_head_has_no_spread_to_be_wary_of() -> None:
    assert float(pessimistic(torch.tensor([[1.5]]), 2.0)) == 1.5


def test_heads_that_agree_exactly_have_a_finite_gradient() -> None:
    scores_BH = torch.zeros(3, 4, requires_grad=True)
    pessimistic(scores_BH, 1.0).sum().backward()
    assert scores_BH.grad is not None
    assert bool(scores_BH.grad.isfinite().all())


# Regression


def test_regression_is_the_squared_error_averaged_over_groups_samples_and_heads() -> None:
    scores_GNKH = torch.zeros(2, 1, 1, 2)
    targets_GNK = torch.tensor([[[1.0]], [[3.0]]])
    assert float(regression_loss(scores_GNKH, targets_GNK, torch.ones(2, 2))) == 5.0


def test_a_group_that_a_head_never_drew_does_not_cost_that_head() -> None:
    scores_GNKH = torch.zeros(2, 1, 1, 1)
    targets_GNK = torch.tensor([[[1.0]], [[3.0]]])
    assert float(regression_loss(scores_GNKH, targets_GNK, torch.tensor([[1.0], [0.0]]))) == 1.0
