"""A run over two Redis servers ends with the policy of the same run on one, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from buffer.redis_replay import RedisReplay
from buffer.sharded_replay import ShardedReplay
from deploy.drills.faults import are_same, weights_in
from deploy.quarantine import opened

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(1200)]
SETTINGS = ("pace=lockstep", "actors.groups_per_batch=1", "seed=3")


@pytest.fixture(scope="module")
def on_one(run_job: Callable[..., Ended]) -> Ended:
    ended = run_job("on-one-server", *SETTINGS)
    assert ended.status == 0, ended.output
    return ended


@pytest.fixture(scope="module")
def on_two(run_job: Callable[..., Ended]) -> Ended:
    ended = run_job("on-two-servers", *SETTINGS, "replay.shards=2")
    assert ended.status == 0, ended.output
    return ended


def test_both_runs_end_with_the_same_policy(on_one: Ended, on_two: Ended) -> None:
    assert are_same(weights_in(on_one.folder), weights_in(on_two.folder))


def test_each_server_holds_its_half_of_the_records(on_two: Ended) -> None:
    # 8 groups of pre-training and 4 in each of two cycles, 3 trajectories each.
    assert on_two.summary["records"]["committed"] == 48
    with opened(on_two.folder, {}) as replay:
        assert isinstance(replay, ShardedReplay)
        parts = [RedisReplay(each) for each in replay.settings.of_shards()]
        assert [part.counters().committed for part in parts] == [24, 24]
        for part in parts:
            part.close()


def test_the_run_is_not_continued_on_another_number_of_servers(
    on_two: Ended, run_job: Callable[..., Ended]
) -> None:
    again = run_job("on-two-servers", *SETTINGS, "method.cycles=3", job="on-one-again", resume=True)
    assert (again.status, "is server 1 of 2 and cannot be 1 of 1" in again.output) == (1, True)
