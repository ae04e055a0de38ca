"""What follows from the settings of a run: numbers, names and places."""

from pathlib import Path

import pytest

from deploy.settings.run_config import load_config
from tests.unit.config_problems import SMOKE, SMOKE_SQDF


@pytest.mark.parametrize(
    ("overrides", "cycles"),
    [
        ([], 1),
        (["replay.max_staleness=0"], 0),
        (["replay.max_staleness=3"], 3),
        (["pace=lockstep", "actors.groups_per_batch=1"], 0),
    ],
)
def test_samplers_run_a_cycle_ahead_unless_in_lockstep_or_told_otherwise(
    overrides: list[str], cycles: int
) -> None:
    assert load_config(SMOKE, overrides).max_staleness == cycles


def test_rounds_that_differ_follow_each_other_without_a_gap() -> None:
    method = load_config(SMOKE, ["method.cycles=3", "method.groups_per_cycle=[2, 4, 8]"]).method
    after = [range(8, 10), range(10, 14), range(14, 22)]
    assert [method.tickets_after(cycle) for cycle in range(3)] == after
    assert [method.tickets_before(cycle) for cycle in range(3)] == [range(8), *after[:2]]


def test_several_redis_urls_are_given_with_spaces_between_them() -> None:
    config = load_config(SMOKE, ["replay.redis='redis://a:6379/0 rediss://b:6379/1'"])
    assert config.redis_url({}) == "redis://a:6379/0 rediss://b:6379/1"


def test_rewarded_steps_follow_the_sampler() -> None:
    config = load_config(SMOKE, ["model.num_steps=4"])
    assert config.rewarded_steps == 4
    assert config.step_labels == ("1step", "2step", "3step", "4step")


def test_a_chain_of_many_steps_is_rewarded_at_its_end() -> None:
    config = load_config(SMOKE_SQDF)
    assert (config.rewarded_steps, config.step_labels) == (1, ("50step",))


def test_replayed_states_count_as_draws() -> None:
    # 2 steps of 4 groups of 3, and 2 steps of 4 states, for 4 groups of 3.
    assert load_config(SMOKE_SQDF).samples_per_insert == pytest.approx((24 + 8) / 12)


def test_more_samplers_than_a_round_has_batches_for_are_of_no_use() -> None:
    values = [
        "method.groups_per_cycle=24",
        "actors.groups_per_batch=4",
        "replay.capacity_groups=56",
    ]
    ahead = [*values, "replay.max_staleness=1"]
    turns = [*values, "replay.max_staleness=0"]
    assert load_config(SMOKE, turns).useful_samplers == 6
    assert load_config(SMOKE, ahead).useful_samplers == 12


def test_only_the_last_step_can_carry_the_reward() -> None:
    assert load_config(SMOKE, ["method.reward_steps=last"]).rewarded_steps == 1


def test_the_environment_says_where_a_job_writes() -> None:
    config = load_config(SMOKE, ["name=a"])
    assert config.run_folder({"FLEETUNE_RUNS": "/elsewhere"}) == Path("/elsewhere/a")


@pytest.mark.parametrize(
    ("setting", "environ", "url"),
    [
        ("auto", {}, None),
        ("auto", {"REDIS_URL": "redis://h"}, "redis://h"),
        ("embedded", {"REDIS_URL": "redis://h"}, None),
        ("redis://mine", {"REDIS_URL": "redis://h"}, "redis://mine"),
    ],
)
def test_the_redis_setting_chooses_the_server(
    setting: str, environ: dict[str, str], url: str | None
) -> None:
    assert load_config(SMOKE, [f"replay.redis={setting}"]).redis_url(environ) == url


def test_a_budget_is_counted_in_scores_and_holds_whole_trajectories() -> None:
    config = load_config(
        SMOKE_SQDF, ["limits.reward_queries=504", "method.states.score_clean=true"]
    )
    # Each trajectory has its end and four told latents scored.
    assert (config.queries_per_record, config.max_records) == (5, 100)


def test_rewards_that_are_trained_on_together_are_scores_alone_as_well() -> None:
    both = "rewards={a: {kind: jpeg-size}, b: {kind: shapes-binding}, c: {kind: x:Y, weight: 0}}"
    assert load_config(SMOKE, [both]).measured_scores == tuple(
        f"{name}_{step}step"
        for step in (1, 2)
        for name in ("exact", "reward", "reward_a", "reward_b")
    )
