"""The rule for the size of fleets: what it wants in each situation, and that it settles."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.fleet.autoscale import Bounds, Measured, advise

QUIET = Measured(waits_for_samplers=0.0, samplers_work=0.9, rewards_work=0.9, queue=0.2)
BOTH = {"samplers": Bounds(1, 16), "rewards": Bounds(1, 8)}
COUNTS = {"samplers": 4, "rewards": 4}
SHARES = st.floats(0, 1)


@pytest.mark.parametrize(
    ("change", "role", "count", "why"),
    [
        ({"queue": 0.9}, "rewards", 5, "the queue for rewards is 90 % full"),
        ({"waits_for_rewards": 0.3}, "rewards", 5, "the learner waits for them 30 % of the time"),
        ({"waits_for_samplers": 0.4}, "samplers", 7, "the learner waits for them 40 % of the time"),
        ({"waits_for_samplers": 0.95}, "samplers", 8, "the learner waits for them 95 %"),
        ({"samplers_work": 0.2}, "samplers", 2, "samplers are idle 80 %"),
        ({"rewards_work": 0.3, "queue": 0.0}, "rewards", 2, "reward servers are idle 70 %"),
    ],
)
def test_every_situation_has_its_answer_and_reason(
    change: dict[str, float], role: str, count: int, why: str
) -> None:
    advice = advise(replace(QUIET, **change), COUNTS, BOTH)
    assert advice is not None
    assert (advice.role, advice.count) == (role, count)
    assert why in advice.why


def test_a_rewards_own_fleet_grows_before_the_servers_that_wait_for_it() -> None:
    full = replace(QUIET, queue=0.9, rewards_work=1.0, pools_work={"rewards.clip": 0.95})
    counts = COUNTS | {"rewards.clip": 8}
    advice = advise(full, counts, BOTH | {"rewards.clip": Bounds(1, 16)})
    assert advice is not None
    assert (advice.role, advice.count) == ("rewards.clip", 10)
    assert "those of rewards.clip work 95 %" in advice.why
    assert advise(full, counts, BOTH) is None  # more reward servers would only wait for it too


def test_a_rewards_own_fleet_shrinks_where_it_is_idle() -> None:
    idle = replace(QUIET, queue=0.0, pools_work={"rewards.clip": 0.2})
    counts = COUNTS | {"rewards.clip": 8}
    advice = advise(idle, counts, BOTH | {"rewards.clip": Bounds(1, 16)})
    assert advice is not None
    assert (advice.role, advice.count) == ("rewards.clip", 4)


def test_a_busy_run_whose_learner_works_is_left_alone() -> None:
    assert advise(QUIET, COUNTS, BOTH) is None


def test_more_samplers_are_no_answer_where_samplers_are_not_waited_for() -> None:
    # A learner that waits while samplers idle waits for rewards, or for nobody.
    idle = replace(QUIET, waits_for_samplers=0.5, samplers_work=0.1, rewards_work=0.7)
    assert advise(idle, COUNTS, BOTH) is None


def test_samplers_that_wait_while_the_learner_works_are_still_worth_adding_to() -> None:
    # Learner and samplers take turns: each waits half of the time.
    turns = replace(QUIET, waits_for_samplers=0.5, samplers_work=0.5)
    advice = advise(turns, COUNTS, BOTH)
    assert advice is not None
    assert (advice.role, advice.count) == ("samplers", 8)


def test_reward_servers_that_take_turns_with_the_learner_are_worth_adding_to() -> None:
    # The learner works 80 s, samplers 20 s, and one server needs 80 s for what they make.
    turns = Measured(
        waits_for_samplers=0.12, samplers_work=0.12, rewards_work=0.5, queue=0.0,
        waits_for_rewards=0.38,
    )  # fmt: skip
    advice = advise(turns, {"samplers": 4, "rewards": 1}, BOTH)
    assert advice is not None
    assert (advice.role, advice.count) == ("rewards", 2)


def test_a_rewards_own_fleet_that_takes_turns_grows_before_its_servers() -> None:
    turns = replace(
        QUIET, rewards_work=0.5, waits_for_rewards=0.4, pools_work={"rewards.clip": 0.45}
    )
    counts = COUNTS | {"rewards.clip": 1}
    advice = advise(turns, counts, BOTH | {"rewards.clip": Bounds(1, 4)})
    assert advice is not None
    assert advice.role == "rewards.clip"


def test_a_role_that_nobody_gave_away_is_not_touched() -> None:
    assert advise(replace(QUIET, queue=1.0), COUNTS, {"samplers": Bounds(1, 16)}) is None
    assert advise(replace(QUIET, waits_for_samplers=0.5), COUNTS, {}) is None


@given(SHARES, SHARES, SHARES, SHARES, st.integers(1, 50), st.integers(1, 50))
def test_no_advice_leaves_its_bounds_or_changes_nothing(
    waits: float, samplers: float, rewards: float, queue: float, one: int, other: int
) -> None:
    counts = {"samplers": one, "rewards": other}
    advice = advise(Measured(waits, samplers, rewards, queue), counts, BOTH)
    if advice is not None:
        bounds = BOTH[advice.role]
        assert bounds.least <= advice.count <= bounds.most
        assert advice.count != counts[advice.role]


@given(st.floats(0.5, 40), st.integers(1, 64))
def test_a_fleet_of_any_size_settles_where_the_learner_is_busy(need: float, count: int) -> None:
    """`need` samplers make as much as the learner takes."""
    bounds = {"samplers": Bounds(1, 64)}
    for _ in range(12):
        waits, works = max(0.0, 1 - count / need), min(1.0, need / count)
        advice = advise(
            Measured(waits, works, rewards_work=0.7, queue=0.0),
            {"samplers": count, "rewards": 1},
            bounds,
        )
        if advice is None:
            break
        count = advice.count
    else:
        pytest.fail(f"still changing at {count} samplers for a need of {need}")
    assert count >= 0.9 * need - 1e-9
    assert count <= max(2 * need, 1) + 1
