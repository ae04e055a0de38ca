"""Ends of replayed trajectories, on a real server: the good ones, and pairs of one prompt."""

import threading

import numpy as np
import pytest
import torch

from buffer.records import Record, Scores, record_id
from buffer.redis_replay import RedisReplay
from learner.clean_latents import CleanLatents
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.methods.uninformed import NothingToLearnError

pytestmark = pytest.mark.redis
MEMBERS, TICKETS = 3, 4
ALL = slice(None)
REWARDS = {
    0: (0.1, 0.9, 0.5),
    1: (0.4, 0.4, 0.4),  # nobody is better
    2: (0.8, 0.2, 0.3),
    3: (0.0, 0.6, 0.7),
}


def value_of(ticket: int, member: int) -> float:
    """What every number of a trajectory's clean latent is."""
    return 10.0 * ticket + member


def group(ticket: int) -> list[Record]:
    shape = (4, 2, 2)
    return [
        Record(
            record_id=record_id(ticket, member),
            ticket=ticket,
            member=member,
            prompt=f"prompt {ticket}",
            policy_version=ticket,
            seed=ticket,
            steps=(7, 50),
            scored=(1,),
            latents=(
                np.full(shape, -1, np.float16),
                np.full(shape, value_of(ticket, member), np.float16),
            ),
        )
        for member in range(MEMBERS)
    ]


@pytest.fixture
def groups(replay: RedisReplay) -> ScoredGroups:
    replay.admit(limit=TICKETS, policy_version=0)
    for ticket in range(TICKETS):
        replay.lease_ticket("sampler", lease_s=10)
        records = group(ticket)
        replay.put_group(ticket, records)
        scores = [Scores({"a": (reward,)}) for reward in REWARDS[ticket]]
        replay.commit(
            [(r.record_id, score) for r, score in zip(records, scores, strict=True)], "server"
        )
    source = GroupSource(
        replay=replay,
        rewards={"a": 2.0},
        group_size=MEMBERS,
        max_open=4,
        capacity_groups=100,
        stall_s=1.0,
        stopping=threading.Event(),
    )
    view = ScoredGroups(source, steps=(0,), admits=False)
    view.collect(range(TICKETS), 0)
    return view


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_good_ones_are_read_with_their_weighted_rewards(groups: ScoredGroups) -> None:
    latents = CleanLatents(groups, fresh=0.0)
    batch = latents.good(4, rng(), ALL, threshold=1.2, kept_share=1.0)
    told = zip(batch.latents_BCHW[:, 0, 0, 0].tolist(), batch.reward_B.tolist(), strict=True)
    expected = {(1.0, 1.8), (20.0, 1.6), (31.0, 1.2), (32.0, 1.4)}
    assert {(x, round(reward, 4)) for x, reward in told} == expected


def test_without_a_threshold_the_best_share_is_drawn(groups: ScoredGroups) -> None:
    batch = CleanLatents(groups, fresh=0.0).good(6, rng(), ALL, threshold=None, kept_share=2 / 12)
    assert sorted(batch.latents_BCHW[:, 0, 0, 0].tolist()) == [1.0] * 3 + [20.0] * 3


def test_of_a_tie_at_the_end_of_the_best_share_the_newest_is_drawn(groups: ScoredGroups) -> None:
    batch = CleanLatents(groups, fresh=0.0).good(6, rng(), ALL, threshold=None, kept_share=6 / 12)
    assert set(batch.latents_BCHW[:, 0, 0, 0].tolist()) == {1.0, 2.0, 12.0, 20.0, 31.0, 32.0}


def test_a_threshold_that_nothing_reaches_is_told_with_the_best_so_far(
    groups: ScoredGroups,
) -> None:
    with pytest.raises(LookupError, match=r"the best of 12 has 1\.8"):
        CleanLatents(groups, fresh=0.0).good(4, rng(), ALL, threshold=5.0, kept_share=1.0)


def test_a_replay_that_tells_nothing_is_known_before_anything_is_drawn(
    groups: ScoredGroups, replay: RedisReplay
) -> None:
    latents = CleanLatents(groups, fresh=0.0)
    with pytest.raises(NothingToLearnError, match=r"lower it, or leave it out"):
        latents.good_rows(threshold=5.0, kept_share=1.0)
    replay.consume(TICKETS)
    groups.catch_up()
    for looked in (latents.pair_rows, lambda: latents.good_rows(threshold=None, kept_share=1.0)):
        with pytest.raises(NothingToLearnError, match="no scored picture is in the replay"):
            looked()


def test_a_pair_is_the_best_and_the_worst_of_one_prompt(groups: ScoredGroups) -> None:
    batch = CleanLatents(groups, fresh=0.0).pairs(6, rng(), ALL)
    assert batch.winners.prompts == batch.losers.prompts
    pairs = zip(
        batch.winners.latents_BCHW[:, 0, 0, 0].tolist(),
        batch.losers.latents_BCHW[:, 0, 0, 0].tolist(),
        strict=True,
    )
    assert set(pairs) == {(1.0, 0.0), (20.0, 21.0), (32.0, 30.0)}


def test_fresh_pairs_are_those_of_the_newest_policy(groups: ScoredGroups) -> None:
    batch = CleanLatents(groups, fresh=1.0).pairs(1, rng(), ALL)
    assert batch.winners.prompts == ["prompt 3"]


def test_ranks_draw_one_batch_and_share_it(groups: ScoredGroups) -> None:
    latents = CleanLatents(groups, fresh=0.25)
    whole = latents.pairs(4, rng(), ALL)
    for rank in (0, 1):
        part = latents.pairs(4, rng(), slice(rank, None, 2))
        torch.testing.assert_close(part.winners.latents_BCHW, whole.winners.latents_BCHW[rank::2])
        assert part.losers.prompts == whole.losers.prompts[rank::2]


def test_pairs_that_are_gone_are_replaced_by_others_of_the_batch(
    groups: ScoredGroups, replay: RedisReplay
) -> None:
    replay.consume(1)
    batch = CleanLatents(groups, fresh=0.0).pairs(6, rng(), ALL)
    assert "prompt 0" not in batch.winners.prompts
    assert batch.winners.prompts == batch.losers.prompts
