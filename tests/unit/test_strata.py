"""Which states of a chain are kept and drawn: by their weight, whatever is kept."""

import numpy as np
import pytest

from actors.sampling import kept_states
from learner.diffusion.strata import Strata


@pytest.mark.parametrize("count", [1, 6, 7, 50])
@pytest.mark.parametrize("discount", [0.7, 0.9, 1.0])
def test_a_group_keeps_one_state_of_every_part(count: int, discount: float) -> None:
    strata = Strata.spread(50, count, discount)
    assert (strata.edges[0], strata.edges[-1], len(strata.edges)) == (0, 50, count + 1)
    for seed in range(50):
        states = kept_states(seed, strata)
        inside = zip(strata.edges[:-1], states, strata.edges[1:], strict=True)
        assert all(first <= state < stop for first, state, stop in inside)


@pytest.mark.parametrize(
    "strata",
    [
        Strata.spread(50, 6),
        Strata.spread(50, 6, 0.9),
        Strata.spread(50, 6, 0.5),
        Strata.last(50, 4, 0.8),
    ],
    ids=["uniform", "discounted", "steep", "last"],
)
def test_states_are_drawn_in_proportion_to_their_weight(strata: Strata) -> None:
    rng, draws = np.random.default_rng(0), 40_000
    slots = strata.draw(draws, rng)
    kept = np.array([kept_states(seed, strata) for seed in range(draws)])
    counts = np.bincount(kept[np.arange(draws), slots], minlength=50)
    weights = strata.discount ** (49.0 - np.arange(50))
    weights[: strata.edges[0]] = 0
    expected = draws * weights / weights.sum()
    assert (np.abs(counts - expected) <= 6 * np.sqrt(expected) + 1).all()


def test_parts_of_equal_states_weigh_alike() -> None:
    assert Strata.spread(50, 5).edges == (0, 10, 20, 30, 40, 50)
    np.testing.assert_allclose(Strata.spread(50, 5).shares, 0.2)
    # Late states weigh more, so parts become shorter towards the end of the chain.
    lengths = np.diff(Strata.spread(50, 5, 0.9).edges)
    assert lengths[0] > 30
    assert lengths[2:].max() < 6


def test_the_last_states_are_all_kept() -> None:
    assert kept_states(7, Strata.last(50, 3)) == (47, 48, 49)


def test_what_is_kept_is_a_function_of_the_seed() -> None:
    strata = Strata.spread(50, 6)
    assert kept_states(7, strata) == kept_states(7, strata)
    assert len({kept_states(seed, strata) for seed in range(100)}) > 50


def test_a_steep_discount_leaves_no_part_empty_and_no_weight_below_what_floats_hold() -> None:
    strata = Strata.spread(50, 6, 1e-20)
    assert (np.diff(strata.edges) >= 1).all()
    assert strata.shares[-1] == pytest.approx(1.0)
    assert len(kept_states(0, strata)) == 6


@pytest.mark.parametrize("cut", [Strata.spread, Strata.last])
@pytest.mark.parametrize("count", [0, 51])
def test_a_number_of_states_that_a_chain_does_not_have_is_refused(cut: type, count: int) -> None:
    with pytest.raises(ValueError, match="keep 1 to 50"):
        cut(50, count)
