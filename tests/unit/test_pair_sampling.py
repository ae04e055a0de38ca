"""Which records, pairs and steps are drawn."""

import numpy as np
import pytest
from numpy.random import default_rng
from scipy.stats import chisquare

from buffer.sampling import (
    Pairs,
    best_worst_pairs,
    fresh_first,
    ordered_pairs,
    prioritised,
    rank_priority,
    uniform,
)

NAN = np.nan


def as_tuples(pairs: Pairs) -> list[tuple[int, int, int, int]]:
    columns = (pairs.group, pairs.position, pairs.winner, pairs.loser)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def frequencies(rows: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(rows, minlength=count)


def test_uniform_draws_different_rows() -> None:
    assert sorted(uniform(9, 9, default_rng(0))) == list(range(9))


def test_uniform_draws_every_row_equally_often() -> None:
    rng = default_rng(0)
    rows = np.concatenate([uniform(10, 3, rng) for _ in range(3000)])
    assert chisquare(frequencies(rows, 10)).pvalue > 1e-3


def test_uniform_of_too_few_records_is_an_error() -> None:
    with pytest.raises(ValueError, match="4 of 3 records"):
        uniform(3, 4, default_rng(0))


def test_fresh_first_takes_the_newest_versions() -> None:
    rows = fresh_first(np.array([1, 5, 3, 5, 2]), 3, default_rng(0))
    assert sorted(rows.tolist()) == [1, 2, 3]


def test_fresh_first_draws_equal_versions_at_random() -> None:
    rng = default_rng(0)
    rows = np.concatenate([fresh_first(np.ones(6, int), 1, rng) for _ in range(3000)])
    assert chisquare(frequencies(rows, 6)).pvalue > 1e-3


def test_prioritised_draws_in_proportion() -> None:
    priority = np.array([0.0, 1.0, 2.0, 5.0])
    rows = prioritised(priority, 8000, default_rng(0))
    found = frequencies(rows, 4)
    assert found[0] == 0
    assert chisquare(found[1:], 1000 * priority[1:]).pvalue > 1e-3


@pytest.mark.parametrize("priority", [[0.0, 0.0], [1.0, -1.0], [1.0, NAN], [np.inf, 1.0], []])
def test_bad_priorities_are_an_error(priority: list[float]) -> None:
    with pytest.raises(ValueError, match=r"priorities|records"):
        prioritised(np.array(priority), 1, default_rng(0))


def test_rank_priority_ignores_sign_and_scale() -> None:
    value = np.array([-3.0, 2.0, 0.5])
    assert rank_priority(value, 1.0) == pytest.approx([1 / 3, 1, 1 / 2])
    assert np.array_equal(rank_priority(100 * value - 7, 1.0), rank_priority(value, 1.0))


def test_equal_values_have_equal_rank_priority() -> None:
    assert rank_priority(np.array([1.0, 5.0, 1.0]), 2.0) == pytest.approx([0.16, 1, 0.16])


# Two groups of three members, two scored positions; the second position ties in group 0.
REWARDS = np.array(
    [
        [[1.0, 4.0], [3.0, 4.0], [2.0, 4.0]],
        [[NAN, NAN], [0.0, 7.0], [-1.0, 9.0]],
    ]
)


def test_best_and_worst_of_each_group_and_position() -> None:
    pairs = best_worst_pairs(REWARDS)
    assert as_tuples(pairs) == [(0, 0, 1, 0), (1, 0, 1, 2), (1, 1, 2, 1)]
    assert pairs.gap.tolist() == [2, 1, 2]


@pytest.mark.parametrize("rule", [best_worst_pairs, ordered_pairs])
@pytest.mark.parametrize("rewards", [[[[5.0]]], [[[NAN], [NAN]]], [[[NAN], [1.0]]]])
def test_a_group_with_nothing_to_compare_gives_no_pair(rule, rewards) -> None:
    assert len(rule(np.array(rewards))) == 0


@pytest.mark.parametrize("rule", [best_worst_pairs, ordered_pairs])
def test_no_groups_give_no_pairs(rule) -> None:
    assert len(rule(np.empty((0, 6, 2)))) == 0


def test_ordered_pairs_are_all_that_differ() -> None:
    pairs = ordered_pairs(REWARDS)
    assert as_tuples(pairs) == [
        (0, 0, 1, 0),
        (0, 0, 1, 2),
        (0, 0, 2, 0),
        (1, 0, 1, 2),
        (1, 1, 2, 1),
    ]


@pytest.mark.parametrize("rule", [best_worst_pairs, ordered_pairs])
def test_winners_are_better_by_the_gap(rule) -> None:
    rewards = default_rng(0).standard_normal((5, 6, 2))
    pairs = rule(rewards)
    won = rewards[pairs.group, pairs.winner, pairs.position]
    lost = rewards[pairs.group, pairs.loser, pairs.position]
    assert np.array_equal(won - lost, pairs.gap)


def test_negated_rewards_swap_best_and_worst() -> None:
    rewards = default_rng(0).standard_normal((5, 6, 2))
    pairs, swapped = best_worst_pairs(rewards), best_worst_pairs(-rewards)
    assert np.array_equal(pairs.winner, swapped.loser)
    assert np.array_equal(pairs.loser, swapped.winner)


def test_rewards_without_a_position_axis_are_an_error() -> None:
    with pytest.raises(ValueError, match="groups, members, positions"):
        best_worst_pairs(np.zeros((2, 3)))


def test_the_same_generator_draws_the_same() -> None:
    one, other = (prioritised(np.arange(1, 9), 20, default_rng(7)) for _ in range(2))
    assert np.array_equal(one, other)
