"""States of replayed trajectories, on a real server: which are drawn, and what is read."""

import dataclasses
import threading
from typing import Literal

import numpy as np
import pytest
import torch

from buffer.records import Record, Scores, record_id
from buffer.redis_replay import RedisReplay
from learner.diffusion.strata import Strata
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.methods.uninformed import NothingToLearnError
from learner.settings.sqdf import StateDraw
from learner.states import StateReplay, draw_trajectories

pytestmark = pytest.mark.redis
MEMBERS = 2
STRATA = Strata.spread(50, 2)
KEPT = {0: (3, 28, 50), 1: (20, 45, 50), 2: (24, 49, 50)}
ALL = slice(None)


def latent(ticket: int, member: int, state: int) -> np.ndarray:
    """Tells by its value which state it is."""
    return np.full((4, 2, 2), ticket * 100 + member * 60 + state, np.float16)


def group(ticket: int) -> list[Record]:
    return [
        Record(
            record_id=record_id(ticket, member),
            ticket=ticket,
            member=member,
            prompt=f"prompt {ticket}",
            policy_version=ticket,
            seed=ticket,
            steps=KEPT[ticket],
            scored=(2,),
            latents=tuple(latent(ticket, member, state) for state in KEPT[ticket]),
        )
        for member in range(MEMBERS)
    ]


@pytest.fixture
def groups(replay: RedisReplay) -> ScoredGroups:
    replay.admit(limit=len(KEPT), policy_version=0)
    for ticket in KEPT:
        replay.lease_ticket("sampler", lease_s=10)
        records = group(ticket)
        replay.put_group(ticket, records)
        replay.commit(
            [(r.record_id, Scores({"a": (10.0 * ticket + r.member,)})) for r in records], "server"
        )
    view = ScoredGroups(source_of(replay), steps=(0,), admits=False)
    view.collect(range(len(KEPT)), 0)
    return view


def source_of(replay: RedisReplay) -> GroupSource:
    return GroupSource(
        replay=replay,
        rewards={"a": 2.0},
        group_size=MEMBERS,
        max_open=4,
        capacity_groups=100,
        stall_s=1.0,
        stopping=threading.Event(),
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_groups_that_kept_different_states_share_an_index(groups: ScoredGroups) -> None:
    assert groups.final_rewards().tolist() == [0.0, 2.0, 20.0, 22.0, 40.0, 42.0]


def test_a_drawn_latent_is_the_state_that_it_is_said_to_be(groups: ScoredGroups) -> None:
    batch = StateReplay(groups, StateDraw(), STRATA).draw(6, rng(), ALL)
    tickets = [int(prompt.removeprefix("prompt ")) for prompt in batch.prompts]
    assert sorted(tickets) == [0, 0, 1, 1, 2, 2]
    for row, (ticket, step) in enumerate(zip(tickets, batch.step_B.tolist(), strict=True)):
        assert step in KEPT[ticket][:2]
        value = float(batch.latents_BCHW[row].unique())
        assert value in {float(latent(ticket, member, step)[0, 0, 0]) for member in (0, 1)}


def test_a_batch_of_every_part_is_of_the_same_trajectories(groups: ScoredGroups) -> None:
    early, late = StateReplay(groups, StateDraw(), STRATA).draw_each(6, rng(), ALL)
    assert early.prompts == late.prompts
    for part, batch in enumerate((early, late)):
        kept = [KEPT[int(prompt.removeprefix("prompt "))][part] for prompt in batch.prompts]
        assert batch.step_B.tolist() == kept
    apart = late.latents_BCHW[:, 0, 0, 0] - early.latents_BCHW[:, 0, 0, 0]
    assert apart.tolist() == (late.step_B - early.step_B).tolist()


def test_ranks_draw_one_batch_and_share_it(groups: ScoredGroups) -> None:
    states = StateReplay(groups, StateDraw(), STRATA)
    whole = states.draw(6, rng(), ALL)
    parts = [states.draw(6, rng(), slice(rank, None, 2)) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        torch.testing.assert_close(part.latents_BCHW, whole.latents_BCHW[rank::2])
        assert part.step_B.tolist() == whole.step_B[rank::2].tolist()


def test_fresh_rows_are_those_of_the_newest_policy(groups: ScoredGroups) -> None:
    settings = StateDraw(fresh=0.5)
    rows = draw_trajectories(
        groups.index.policy_version, groups.final_rewards(), 4, settings, rng()
    )
    assert set(groups.index.ticket[rows[:2]].tolist()) == {2}


def test_states_of_cycles_that_a_crash_cut_off_are_not_drawn(
    groups: ScoredGroups, replay: RedisReplay
) -> None:
    resumed = ScoredGroups(source_of(replay), steps=(0,), admits=False)
    resumed.resume(groups.index.position, next_ticket=2)
    assert len(resumed.index) == 3 * MEMBERS
    settings = StateDraw(fresh=0.5)
    batch = StateReplay(resumed, settings, STRATA).draw(8, rng(), ALL)
    assert set(batch.prompts) == {"prompt 0", "prompt 1"}
    # As a learner that was never cut off draws them.
    straight = ScoredGroups(source_of(replay), steps=(0,), admits=False)
    straight.collect(range(2), 0)
    same = StateReplay(straight, settings, STRATA).draw(8, rng(), ALL)
    assert batch.latents_BCHW.tolist() == same.latents_BCHW.tolist()


def test_priorities_go_by_the_rank_of_the_reward(groups: ScoredGroups) -> None:
    settings = StateDraw(trajectories="prioritised", rank_exponent=1.0)
    rows = draw_trajectories(
        groups.index.policy_version, groups.final_rewards(), 6000, settings, rng()
    )
    counts = np.bincount(rows, minlength=6)
    expected = 1 / np.arange(6, 0, -1)
    np.testing.assert_allclose(counts / 6000, expected / expected.sum(), atol=0.02)


def test_more_states_than_trajectories_come_again(groups: ScoredGroups) -> None:
    batch = StateReplay(groups, StateDraw(), STRATA).draw(16, rng(), ALL)
    assert len(batch.prompts) == 16


def test_evicted_states_are_replaced_by_others_of_the_batch(
    groups: ScoredGroups, replay: RedisReplay
) -> None:
    replay.consume(2)
    batch = StateReplay(groups, StateDraw(), STRATA).draw(6, rng(), ALL)
    assert set(batch.prompts) == {"prompt 2"}
    assert len(batch.latents_BCHW) == 6


def test_the_references_noise_comes_with_its_state(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    replay.lease_ticket("sampler", lease_s=10)
    labels = (3, 28, 50, 105, 130)
    records = [
        dataclasses.replace(
            record, steps=labels, latents=tuple(latent(0, record.member, each) for each in labels)
        )
        for record in group(0)
    ]
    replay.put_group(0, records)
    replay.commit([(r.record_id, Scores({"a": (1.0,)})) for r in records], "server")
    view = ScoredGroups(source_of(replay), steps=(0,), admits=False)
    view.collect(range(1), 0)
    states = StateReplay(view, StateDraw(kept=2, store_reference=True), STRATA)
    batch = states.draw(8, rng(), ALL)
    assert batch.ref_eps_BCHW is not None
    apart = batch.ref_eps_BCHW - batch.latents_BCHW
    assert apart.unique().tolist() == [102.0]


def test_without_any_state_left_it_says_so(groups: ScoredGroups, replay: RedisReplay) -> None:
    replay.consume(3)
    with pytest.raises(LookupError, match="capacity is too small"):
        StateReplay(groups, StateDraw(), STRATA).draw(6, rng(), ALL)


@pytest.mark.parametrize("how", ["uniform", "prioritised"])
def test_nothing_is_drawn_of_nothing(how: Literal["uniform", "prioritised"]) -> None:
    with pytest.raises(LookupError, match="no trajectory is in the replay"):
        draw_trajectories(np.empty(0), np.empty(0), 4, StateDraw(trajectories=how), rng())


def test_before_a_draw_it_is_told_that_nothing_is_known(replay: RedisReplay) -> None:
    empty = ScoredGroups(source_of(replay), steps=(0,), admits=False)
    states = StateReplay(empty, StateDraw(), STRATA)
    with pytest.raises(NothingToLearnError, match="no scored picture is in the replay"):
        states.check()
