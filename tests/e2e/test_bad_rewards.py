"""Rewards that raise: what they fail is counted, is never a number, and has a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from actors.prompts import PromptSource
from deploy.settings.prompt_sources import prompt_list
from deploy.settings.run_config import config_from_json

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
GROUP = 3


@pytest.fixture(scope="module")
def flaky(run_job: Callable[..., Ended]) -> Ended:
    return run_job(
        "flaky",
        "rewards.binding.kind=e2e_rewards:RaisesForRed",
        "method.pretrain.groups=16",
        "replay.max_attempts=1",
        "limits.failure_budget.share=1",
    )


@pytest.fixture(scope="module")
def hopeless(run_job: Callable[..., Ended]) -> Ended:
    return run_job(
        "hopeless",
        "rewards.binding.kind=e2e_rewards:AlwaysRaises",
        "limits.failure_budget.minimum=3",
        "replay.max_attempts=1",
    )


def test_a_run_finishes_although_some_prompts_have_no_reward(flaky: Ended) -> None:
    assert (flaky.status, flaky.summary["status"]) == (0, "finished"), flaky.output


def test_exactly_the_records_that_the_reward_refused_have_failed(flaky: Ended) -> None:
    config = config_from_json((flaky.folder / "config.json").read_text())
    source = PromptSource(prompt_list(config.prompts, config.seed), run_seed=config.seed)
    records = flaky.summary["records"]
    tickets = range(records["issued"])
    refused = sum("red" in source.prompt_of(ticket).split() for ticket in tickets)
    assert records["failed"] == refused * GROUP > 0


def test_failed_records_have_their_reason_and_no_reward(flaky: Ended) -> None:
    summary = flaky.summary
    reasons = {"no red today" in reason: count for reason, count in summary["failures"].items()}
    assert reasons == {True: summary["records"]["failed"]}
    assert summary["reward_queries"] == 2 * summary["records"]["committed"]


def test_the_curves_are_of_the_rewards_that_exist(flaky: Ended) -> None:
    # Mean brightness, in (0, 1): a 0 for every refused record would halve it, unseen.
    sampled = [p["values"] for p in flaky.points if p["phase"] in ("pretrain", "fresh")]
    means = [values["reward_2step"] for values in sampled if "reward_2step" in values]
    assert len(means) == 3
    assert all(abs(mean - means[0]) < 0.15 * means[0] for mean in means)


def test_an_evaluation_is_of_the_rewards_that_exist(flaky: Ended) -> None:
    # Of its eight pictures those of red shapes have none; the policy draws what it drew before.
    pretrain = next(p["values"]["reward_2step"] for p in flaky.points if p["phase"] == "pretrain")
    assert flaky.summary["before"]["reward_2step"] == pytest.approx(pretrain, rel=0.15)


def test_a_reward_that_always_fails_ends_the_run(hopeless: Ended) -> None:
    assert (hopeless.status, hopeless.summary["status"]) == (1, "failed"), hopeless.output


def test_the_reason_is_told_and_counted(hopeless: Ended) -> None:
    summary = hopeless.summary
    assert "records have no reward" in summary["reason"]
    assert "the model is gone" in summary["reason"]
    assert sum(summary["failures"].values()) == summary["records"]["failed"] > 0


def test_a_failed_run_has_a_report(hopeless: Ended) -> None:
    assert (hopeless.folder / "report.html").is_file()


def test_a_run_that_its_budget_ends_leaves_all_that_it_has_learned_in_a_checkpoint(
    run_job: Callable[..., Ended],
) -> None:
    ended = run_job(
        "spent",
        "rewards.binding.kind=e2e_rewards:RaisesForRed",
        "method.pretrain.groups=16",
        "method.cycles=300",
        "learner.checkpoint_every_cycles=1000",
        "replay.max_attempts=1",
        "limits.failure_budget={share: 0.01, minimum: 60}",
    )
    assert ended.summary["status"] == "failed", ended.output
    assert "failure budget" in ended.summary["reason"]
    learned = max(p["step"] for p in ended.points if p["phase"] == "policy")
    # Named after whole cycles; of the one in hand, it holds the policy's steps if they are taken.
    saved = max(int(path.name[:8]) for path in (ended.folder / "checkpoints").iterdir())
    assert saved >= learned > 0
