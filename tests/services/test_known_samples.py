"""What may be drawn of a replay: the same on every rank, and nothing that is about to go."""

from collections.abc import Callable

import pytest

from buffer.redis_replay import RedisReplay
from learner.groups import ScoredGroups
from tests.services.learner_view import MEMBERS, MakeGroup, score_groups, source, view

pytestmark = pytest.mark.redis


def test_ranks_know_the_same_samples_whatever_samplers_that_are_ahead_evict(
    new_replay: Callable[..., RedisReplay], make_group: MakeGroup
) -> None:
    replay = new_replay(capacity_records=6 * MEMBERS)
    settings = {"max_open": 100, "max_staleness": 1, "capacity_groups": 6}
    ranks = [
        ScoredGroups(source(replay, **settings), steps=(0, 1), admits=True, round_ends=(3, 6, 9))
        for _ in range(2)
    ]
    score_groups(replay, make_group, *range(6))
    for rank in ranks:
        rank.collect(range(3, 6), 0)
    score_groups(replay, make_group, 6, 7, 8)  # by samplers that are a round ahead
    ranks[1].catch_up()
    known = [rank.index.ticket[rank.known_rows()].tolist() for rank in ranks]
    assert known == [[3, 3, 4, 4, 5, 5]] * 2
    for rank in ranks:
        assert rank.fetch([3, 4, 5]).tickets == [3, 4, 5]
        assert len(rank.final_rewards()) == 3 * MEMBERS


def test_after_a_restart_what_old_tickets_may_still_evict_is_not_known(
    new_replay: Callable[..., RedisReplay], make_group: MakeGroup
) -> None:
    replay, before = new_replay(capacity_records=3 * MEMBERS), view(new_replay())
    score_groups(replay, make_group, 0, 1, 2)
    before.catch_up()
    replay.admit(limit=5, policy_version=0)  # of the life before; sampled, and not yet scored
    after = view(replay, capacity_groups=3)
    after.resume(before.index.position, 3)
    assert after.index.ticket[after.known_rows()].tolist() == [2, 2]
