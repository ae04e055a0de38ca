"""How a surrogate agrees with the truth, against hand-made groups and scipy's own."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from learner.agreement import rank_correlation, standard_gap


def test_the_same_order_is_one_and_the_reverse_minus_one() -> None:
    rewards = np.array([[1.0, 2.0, 3.0], [9.0, 5.0, 7.0]])
    assert rank_correlation(rewards**3, rewards) == pytest.approx(1.0)
    assert rank_correlation(-rewards, rewards) == pytest.approx(-1.0)


def test_a_textbook_group_has_its_textbook_value() -> None:
    # 1 − 6·Σd² / (n(n² − 1)) with d = (1, −1, 0, 0): 1 − 12/60.
    scores, rewards = np.array([[2.0, 1.0, 3.0, 4.0]]), np.array([[1.0, 2.0, 3.0, 4.0]])
    assert rank_correlation(scores, rewards) == pytest.approx(0.8)


def test_groups_with_ties_are_as_scipy_has_them() -> None:
    rng = np.random.default_rng(3)
    scores, rewards = rng.integers(0, 4, (2, 5, 7)).astype(float)
    expected = np.mean(
        [spearmanr(s, r).statistic for s, r in zip(scores, rewards, strict=True)]  # pyright: ignore
    )
    assert rank_correlation(scores, rewards) == pytest.approx(expected)


def test_what_differs_between_prompts_alone_counts_for_nothing() -> None:
    # Over the whole batch these would agree nearly perfectly.
    scores = np.array([[1.0, 2.0], [101.0, 102.0]])
    rewards = np.array([[2.0, 1.0], [102.0, 101.0]])
    assert rank_correlation(scores, rewards) == pytest.approx(-1.0)


def test_a_group_without_an_order_is_left_out() -> None:
    scores = np.array([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])
    rewards = np.array([[1.0, 2.0], [3.0, 3.0], [1.0, 2.0]])
    assert rank_correlation(scores, rewards) == pytest.approx(1.0)
    assert math.isnan(rank_correlation(scores[1:], rewards[1:]))


def test_the_gap_is_what_is_promised_beyond_the_truth() -> None:
    assert standard_gap(np.array([[2.0, 3.0]]), np.array([[1.0, 0.0]])) == pytest.approx(2.0)
