"""Losses of learning from own pictures beside NumPy, and what they must not do."""

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.methods.likelihood import (
    dpo_loss,
    kept_rows,
    preferred_pairs,
    pso_loss,
    reward_weighted,
    squared_error,
)
from learner.methods.uninformed import NothingToLearnError

REWARD_N = np.array([0.2, 0.9, 0.5, 0.9, 0.1])


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("threshold", "share", "kept"),
    [(0.5, 1.0, [1, 2, 3]), (2.0, 1.0, []), (None, 0.4, [1, 3]), (None, 0.01, [3])],
)
def test_only_good_pictures_are_kept(
    threshold: float | None, share: float, kept: list[int]
) -> None:
    version_N = np.zeros(len(REWARD_N), np.int64)
    assert kept_rows(REWARD_N, version_N, threshold=threshold, share=share).tolist() == kept


@pytest.mark.parametrize(
    ("rewards", "versions", "share", "kept"),
    [
        # All alike: the newest version's, and of one version the last tickets'.
        ([1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2], 1 / 3, [4, 5]),
        ([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], 0.5, [3, 4, 5]),
        # A version may come to a later ticket than a newer one.
        ([1, 1, 1, 1], [0, 1, 1, 0], 0.5, [1, 2]),
        # A tie at the cut: the one that is better stays, though it is the oldest.
        ([2, 1, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2], 0.5, [0, 2, 3]),
        ([2, 1, 1, 1, 0, 0], [0, 0, 1, 1, 2, 2], 1 / 3, [0, 3]),
    ],
)
def test_of_equal_rewards_the_newest_are_kept(
    rewards: list[float], versions: list[int], share: float, kept: list[int]
) -> None:
    found = kept_rows(np.array(rewards, float), np.array(versions), threshold=None, share=share)
    assert found.tolist() == kept


def test_a_reward_that_is_no_number_is_never_among_the_best() -> None:
    reward_N, version_N = np.array([0.1, np.nan, 0.2]), np.array([0, 1, 0])
    assert kept_rows(reward_N, version_N, threshold=None, share=2 / 3).tolist() == [0, 2]


def test_a_picture_counts_by_its_reward_and_never_against_itself() -> None:
    eps, noise = normal(1, 3, 4, 2, 2).requires_grad_(), normal(2, 3, 4, 2, 2)
    loss = reward_weighted(squared_error(eps, noise), torch.tensor([2.0, -1.0, 0.5]).double())
    errors = ((eps.detach() - noise) ** 2).numpy().mean(axis=(1, 2, 3))
    torch.testing.assert_close(float(loss.detach()), (2 * errors[0] + 0.5 * errors[2]) / 3)
    loss.backward()
    assert eps.grad is not None
    assert bool((eps.grad[1] == 0).all())


def test_dpo_is_log_2_where_the_policy_is_its_reference() -> None:
    errors = normal(1, 2, 5).abs()
    loss = dpo_loss(errors[0], errors[1], errors[0], errors[1], 5000.0)
    assert float(loss) == pytest.approx(np.log(2))


def test_dpo_is_the_papers_formula_and_swapping_a_pair_negates_its_gradient() -> None:
    winner, loser, ref_winner, ref_loser = 1e-3 * normal(1, 4, 6).abs()
    winner.requires_grad_()
    loss = dpo_loss(winner, loser, ref_winner, ref_loser, 5000.0)
    inner = -2500.0 * (winner - ref_winner - loser + ref_loser).detach().numpy()
    expected = np.mean(np.log1p(np.exp(-inner)))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    equal = ref_winner.clone().requires_grad_()
    (as_winner,) = torch.autograd.grad(
        dpo_loss(equal, ref_loser, ref_winner, ref_loser, 2.0), equal
    )
    (as_loser,) = torch.autograd.grad(dpo_loss(ref_loser, equal, ref_loser, ref_winner, 2.0), equal)
    torch.testing.assert_close(as_winner, -as_loser)
    assert bool((as_winner > 0).all())


def test_pso_prefers_the_winner_until_its_ratio_is_clipped() -> None:
    winner = torch.tensor([0.0, 0.05, 0.2], dtype=torch.float64, requires_grad=True)
    loser = torch.tensor([0.0, -0.05, -0.3], dtype=torch.float64, requires_grad=True)
    weight = np.array([1.0, 0.9, 1.2])
    loss = pso_loss(winner, loser, torch.from_numpy(weight), beta=50.0, clip=0.1)
    bounded = np.array([0.0, 0.1, np.log(1.1) - np.log(0.9)])
    expected = np.mean(weight * np.log1p(np.exp(-50.0 * bounded)))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert winner.grad is not None
    assert loser.grad is not None
    assert (winner.grad < 0).tolist() == [True, True, False]
    assert (loser.grad > 0).tolist() == [True, True, False]


def test_a_group_whose_members_are_alike_has_no_pair() -> None:
    reward_GM = np.array([[0.1, 0.7, 0.3], [0.5, 0.5, 0.5]])
    pairs = preferred_pairs(reward_GM)
    assert (pairs.group.tolist(), pairs.winner.tolist(), pairs.loser.tolist()) == ([0], [1], [0])
    with pytest.raises(NothingToLearnError, match="look at the reward"):
        preferred_pairs(reward_GM[1:])
