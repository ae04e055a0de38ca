"""Rewards that hang or answer nonsense: a run ends in time and says why, or as if they had not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
HOPELESS = {
    "SleepsForever": "timed out after 1 s",
    "ReturnsNaN": "which is not a finite float32",
    "WrongShape": "it must return float32",
    "ShortBatch": "it must return float32",
}
ENOUGH_S = 120.0


@pytest.fixture(scope="module", params=sorted(HOPELESS))
def hopeless(request: pytest.FixtureRequest, run_job: Callable[..., Ended]) -> tuple[str, Ended]:
    ended = run_job(
        f"hopeless-{request.param}",
        f"rewards.binding.kind=e2e_rewards:{request.param}",
        "scoring.timeout_s=1",
        "replay.max_attempts=2",
        "limits.failure_budget.minimum=3",
    )
    return request.param, ended


@pytest.fixture(scope="module")
def stalling(run_job: Callable[..., Ended]) -> Ended:
    return run_job(
        "stalling",
        "rewards.binding.kind=e2e_rewards:StallsOnce",
        "scoring.timeout_s=2",
    )


@pytest.fixture(scope="module")
def interrupted(run_job: Callable[..., Ended]) -> Ended:
    return run_job("down-for-a-while", "rewards.binding.kind=e2e_rewards:DownForAWhile")


def test_it_ends_the_run_in_time(hopeless: tuple[str, Ended]) -> None:
    _, ended = hopeless
    assert (ended.status, ended.summary["status"]) == (1, "failed"), ended.output
    assert ended.summary["wall_s"] < ENOUGH_S


def test_the_run_says_why(hopeless: tuple[str, Ended]) -> None:
    kind, ended = hopeless
    assert HOPELESS[kind] in ended.summary["reason"]


def test_nothing_was_committed(hopeless: tuple[str, Ended]) -> None:
    assert hopeless[1].summary["records"]["committed"] == 0


def test_a_run_whose_reward_stalls_once_ends_as_if_it_had_not(stalling: Ended) -> None:
    assert (stalling.status, stalling.summary["status"]) == (0, "finished"), stalling.output
    records = stalling.summary["records"]
    assert (records["failed"], records["committed"]) == (0, records["issued_records"])
    assert records["retried"] > 0


def test_a_run_waits_for_a_reward_that_is_down_and_loses_nothing(interrupted: Ended) -> None:
    assert (interrupted.status, interrupted.summary["status"]) == (0, "finished"), (
        interrupted.output
    )
    records = interrupted.summary["records"]
    assert (records["failed"], records["committed"]) == (0, records["issued_records"])
    assert records["retried"] == 0
    assert "a reward is down: binding: ConnectionError: the service is down" in interrupted.output
