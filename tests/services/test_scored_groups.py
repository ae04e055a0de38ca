"""The learner's view of the replay, on a real server: complete groups, waits, latents."""

import dataclasses
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from buffer.records import Counters
from buffer.redis_replay import RedisReplay
from buffer.sharded_replay import ShardedReplay
from learner.groups import _POLL_S, ScoredGroups
from learner.waits import StallError, StoppedError, held_up_by
from tests.services.learner_view import (
    MEMBERS,
    MakeGroup,
    commit,
    put,
    score_groups,
    source,
    view,
)
from tests.services.replay_calls import one_server, several_servers

pytestmark = pytest.mark.redis


def test_a_wait_ends_when_every_record_is_scored(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0, 1)
    groups = view(replay)
    groups.collect(range(2), 0)
    assert groups.complete(range(2)) == [0, 1]


def test_a_wait_without_news_ends_and_says_what_is_missing(replay: RedisReplay) -> None:
    with pytest.raises(StallError, match=r"tickets 3 to 4.*samplers and reward servers"):
        view(replay).collect(range(3, 5), 0)


def test_a_wait_admits_no_more_than_may_be_open(replay: RedisReplay) -> None:
    with pytest.raises(StallError):
        view(replay, max_open=3).collect(range(8), 0)
    assert replay.counters().admitted == 3


def test_a_rank_that_does_not_admit_admits_nothing(replay: RedisReplay) -> None:
    with pytest.raises(StallError):
        view(replay, admits=False).collect(range(8), 0)
    assert replay.counters().admitted == 0


def test_what_comes_next_is_admitted_though_nothing_is_missing(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0)
    groups = ScoredGroups(
        source(replay, max_staleness=1), steps=(0, 1), admits=True, round_ends=(1, 3, 5)
    )
    groups.collect(range(1), 0)
    assert replay.counters().admitted == 3


def test_tickets_that_had_no_room_are_admitted_between_steps(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    groups = ScoredGroups(
        source(replay, max_staleness=1, max_open=2),
        steps=(0, 1),
        admits=True,
        round_ends=(1, 5),
    )
    score_groups(replay, make_group, 0)
    groups.collect(range(1), 0)
    assert replay.counters().admitted == 3
    score_groups(replay, make_group, 1, 2)
    groups.top_up()
    assert replay.counters().admitted == 5
    assert replay.lease_ticket("sampler", lease_s=10) is not None


@pytest.mark.parametrize(
    ("is_put", "cause"), [(False, "waiting_for_samplers"), (True, "waiting_for_rewards")]
)
def test_a_wait_is_told_with_its_cause_while_it_goes_on(
    replay: RedisReplay, make_group: MakeGroup, is_put: bool, cause: str
) -> None:
    waits: list[tuple[str, float]] = []
    stopping = threading.Event()

    def told(name: str, seconds: float) -> None:
        waits.append((name, seconds))
        if len(waits) == 3:
            stopping.set()

    if is_put:
        put(replay, make_group(0))
    groups = view(replay, stall_s=60, stopping=stopping)
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        groups.collect(range(1), 0, told)
    took_s = time.monotonic() - begun
    assert [name for name, _ in waits] == [cause] * 3
    assert 3 * _POLL_S <= sum(seconds for _, seconds in waits) <= took_s


def test_only_the_rank_that_admits_tells_of_waits(replay: RedisReplay) -> None:
    waits: list[object] = []
    with pytest.raises(StallError):
        view(replay, admits=False).collect(range(1), 0, lambda *wait: waits.append(wait))
    assert waits == []


def test_who_is_waited_for_follows_from_how_many_groups_are_with_the_servers() -> None:
    counts = Counters(**{**dict.fromkeys(Counters.__dataclass_fields__, 0), "open_tickets": 3})
    assert held_up_by(4, counts) == "waiting_for_samplers"
    assert held_up_by(3, counts) == "waiting_for_rewards"


def test_what_is_fetched_is_told_with_its_age(replay: RedisReplay, make_group: MakeGroup) -> None:
    told: list[tuple[list[int], list[float]]] = []
    score_groups(replay, make_group, 0)
    groups = view(replay, fetched=lambda *ages: told.append(ages))
    groups.collect(range(1), 0)
    groups.policy_version = groups.index.entry(0).policy_version + 3
    groups.fetch([0])
    ((staleness, age_s),) = told
    assert staleness == [3] * MEMBERS
    assert all(0 <= age < 30 for age in age_s)


def test_a_stop_ends_a_wait_at_once(replay: RedisReplay) -> None:
    stopping = threading.Event()
    stopping.set()
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        view(replay, stopping=stopping, stall_s=20).collect(range(1), 0)
    assert time.monotonic() - begun < 10


def test_a_stop_takes_nothing_from_who_has_all_that_it_asked_for(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    stopping = threading.Event()
    stopping.set()
    score_groups(replay, make_group, 0)
    groups = view(replay, stopping=stopping)
    groups.collect(range(1), 0)
    assert groups.complete(range(1)) == [0]


def test_a_group_with_a_failed_record_is_left_out(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0)
    records = make_group(1)
    put(replay, records)
    commit(replay, records[:1])
    replay.fail(records[1].record_id, "no face found", retry=False)
    groups = view(replay)
    groups.collect(range(2), 0)
    assert groups.complete(range(2)) == [0]


def test_rewards_are_weighted_sums_by_group_member_and_step(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0, 1)
    groups = view(replay, rewards={"a": 2.0, "b": 0.5})
    groups.catch_up()
    assert groups.rewards([1]).tolist() == [[[7.0, 12.0], [7.0, 14.0]]]


def test_only_the_trained_steps_are_looked_at(replay: RedisReplay, make_group: MakeGroup) -> None:
    score_groups(replay, make_group, 0)
    groups = view(replay, steps=(1,))
    groups.catch_up()
    batch = groups.fetch([0])
    assert batch.rewards_GNK.tolist() == [[[0.0], [1.0]]]
    assert np.array_equal(batch.latents_GNKCHW[0, 1, 0], make_group(0)[1].latents[1])


def test_fetched_latents_are_those_of_their_member_and_step(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0, 1)
    groups = view(replay)
    groups.catch_up()
    expected = [[r.latents for r in make_group(ticket)] for ticket in (1, 0)]
    assert np.array_equal(groups.fetch([1, 0]).latents_GNKCHW.numpy(), np.array(expected))


@one_server
def test_a_group_evicted_since_the_log_was_read_is_left_out(
    new_replay: Callable[..., RedisReplay], make_group: MakeGroup
) -> None:
    replay = new_replay(capacity_records=2 * MEMBERS)
    score_groups(replay, make_group, 0, 1)
    groups = view(replay)
    groups.catch_up()
    score_groups(replay, make_group, 2)
    assert groups.fetch([0, 1]).tickets == [1]


@one_server
def test_after_catching_up_an_evicted_group_is_no_longer_complete(
    new_replay: Callable[..., RedisReplay], make_group: MakeGroup
) -> None:
    replay = new_replay(capacity_records=2 * MEMBERS)
    score_groups(replay, make_group, 0, 1, 2)
    groups = view(replay)
    groups.catch_up()
    assert groups.complete(range(3)) == [1, 2]


def test_resuming_on_a_log_that_is_there_skips_nothing(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0)
    before = view(replay)
    before.catch_up()
    view(replay).resume(before.index.position, 1)
    assert replay.counters().issued == 1


def test_a_checkpoint_before_all_that_is_left_is_not_gone_on_from(
    new_replay: Callable[..., RedisReplay], make_group: MakeGroup
) -> None:
    replay, before = new_replay(capacity_records=3 * MEMBERS), view(new_replay())
    score_groups(replay, make_group, 0, 1, 2)
    before.catch_up()
    score_groups(replay, make_group, 3, 4)
    view(replay).resume(before.index.position, 3)  # ticket 2 is there
    score_groups(replay, make_group, 5)
    with pytest.raises(ValueError, match=r"at ticket 3, .* keeps none before it.* deploy.erase"):
        view(replay).resume(before.index.position, 3)
    view(replay).resume(before.index.position, 4)
    replay.erase()
    fresh = new_replay()
    view(fresh).resume(before.index.position, 3)
    fresh.admit(limit=6, policy_version=0)
    tickets = [fresh.lease_ticket("sampler", lease_s=10) for _ in range(3)]
    assert sorted(ticket.number for ticket in tickets if ticket) == [3, 4, 5]


def test_failed_groups_alone_before_a_checkpoint_are_no_eviction(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, make_group(0))
    for record in make_group(0):
        replay.fail(record.record_id, "no face found", retry=False)
    score_groups(replay, make_group, 1)
    groups = view(replay)
    groups.resume("0-0", 1)
    assert not len(groups.known_rows())


def test_resuming_on_a_lost_log_issues_only_new_tickets(replay: RedisReplay) -> None:
    view(replay).resume(f"{time.time_ns() // 1_000_000}-0", 7)
    replay.admit(limit=9, policy_version=0)
    ticket = replay.lease_ticket("sampler", lease_s=10)
    assert ticket is not None
    assert ticket.number == 7


@several_servers
def test_resuming_after_one_server_lost_its_log_issues_only_new_tickets(
    new_replay: Callable[..., ShardedReplay], make_group: MakeGroup
) -> None:
    replay = new_replay()
    score_groups(replay, make_group, *range(6))
    before = view(replay)
    before.catch_up()
    RedisReplay(replay.settings.of_shards()[1]).erase()
    again, after = new_replay(), view(new_replay())
    after.resume(before.index.position, 6)
    again.admit(limit=9, policy_version=0)
    tickets = [again.lease_ticket("sampler", lease_s=10) for _ in range(9)]
    assert sorted(ticket.number for ticket in tickets if ticket) == [6, 7, 8]
    assert after.complete(range(6)) == [0, 2, 3, 5]


def test_standardised_rewards_have_mean_0_and_deviation_1_where_the_moments_were_taken(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0, 1, 2)
    groups = view(replay, rewards={"a": 2.0, "b": 1.0}, standardised=frozenset({"a"}))
    groups.collect(range(3), 0)
    raw_a = groups.index.reward("a").astype(float)
    groups.standardise([0, 1, 2])
    expected = 2.0 * (raw_a - raw_a.mean()) / raw_a.std() + groups.index.reward("b")
    rewards = groups.rewards([0, 1, 2]).reshape(-1, 2)
    np.testing.assert_allclose(rewards.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(groups.final_rewards(), expected[:, -1], rtol=1e-5)


def test_a_reward_that_never_differs_is_not_divided_by_zero(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    score_groups(replay, make_group, 0)
    groups = view(replay, rewards={"b": 1.0}, steps=(0,), standardised=frozenset({"b"}))
    groups.collect(range(1), 0)
    groups.standardise([0])
    assert groups.rewards([0]).tolist() == [[[0.0], [0.0]]]


def test_the_end_of_a_trajectory_is_the_last_of_the_trained_steps(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, make_group(0))
    commit(replay, make_group(0), a=3.0)
    groups = view(replay, steps=(1, 0))
    groups.collect(range(1), 0)
    assert groups.final_rewards().tolist() == [3.0, 3.0]
    assert groups.rewards([0]).tolist() == [[[3.0, 3.0], [4.0, 3.0]]]


def test_a_budget_pays_for_tickets_and_for_what_was_asked_again(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    groups = view(replay, max_records=3 * MEMBERS)
    assert groups.affords(range(1, 3))
    assert not groups.affords(range(2, 4))
    records = make_group(0)
    put(replay, records)
    replay.claim("server", max_records=MEMBERS, block_s=0, lease_s=10)
    replay.fail(records[0].record_id, "try again", retry=True)
    # One more score was asked for, so the last ticket is not paid for any more.
    assert replay.counters().retried == 1
    assert not groups.affords(range(1, 3))
    assert groups.affords(range(2))


def test_without_a_budget_everything_is_afforded(replay: RedisReplay) -> None:
    assert view(replay).affords(range(10**9))


@pytest.mark.parametrize(
    ("staleness", "budget", "issued"),
    [(0, None, 2), (1, None, 3), (2, None, 6), (9, None, 6), (2, 5, 5), (9, 1, 2)],
)
def test_samplers_are_ahead_by_whole_rounds_however_large_these_are(
    replay: RedisReplay, staleness: int, budget: int | None, issued: int
) -> None:
    waiting = ScoredGroups(
        source(
            replay,
            max_open=100,
            max_staleness=staleness,
            max_records=None if budget is None else budget * MEMBERS,
        ),
        steps=(0,),
        admits=True,
        round_ends=(2, 3, 6),
    )
    with pytest.raises(StallError):
        waiting.collect(range(2), 0)
    assert replay.counters().admitted == issued


def test_a_version_s_groups_are_those_that_it_sampled_alone(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    old, new, mixed = (
        make_group(ticket, version=version) for ticket, version in enumerate((0, 1, 1))
    )
    mixed[1] = dataclasses.replace(mixed[1], policy_version=0)
    for records in (old, new, mixed):
        put(replay, records)
        commit(replay, records)
    groups = view(replay)
    groups.collect(range(3), 0)
    assert groups.of_version([0, 1, 2], 1) == [1]
    assert groups.of_version([0, 1, 2], 0) == [0]
    assert groups.of_version([0, 2], 1) == []
