"""What a cycle of an on-policy method trains on: whose advantage is whose, and which steps pair."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.methods.on_policy import Plan, every_step, steps_of_pairs
from learner.seat import Seat
from learner.settings.on_policy import Ppo, Pso

REWARDS = {4: (1.0, 2.0, 6.0), 7: (5.0, 5.0, 5.0), 9: (0.0, 4.0, -4.0), 12: (3.0, 1.0, 2.0)}
"""Of the members of each ticket; those of ticket 7 are alike."""
MEMBERS, SLOTS = 3, 2


class Told:
    """Scored groups, of which nothing but rewards and names is asked."""

    source = SimpleNamespace(group_size=MEMBERS)

    def rewards(self, tickets: Sequence[int]) -> Tensor:
        """[G, N, K]; before the last step they are the other way round."""
        last_GN = torch.tensor([REWARDS[ticket] for ticket in tickets])
        return torch.stack([-last_GN, last_GN], dim=2)

    def entries(self, tickets: Sequence[int]) -> list[Any]:
        return [
            SimpleNamespace(ticket=ticket, member=member)
            for ticket in tickets
            for member in range(MEMBERS)
        ]


def planned(make: Any, settings: Ppo | Pso, seat: Seat = Seat(0)) -> Plan:  # noqa: B008  frozen
    return make(settings)(Told(), list(REWARDS), SLOTS, np.random.default_rng(0), seat)


def reward_of(entry: Any) -> float:
    return REWARDS[entry.ticket][entry.member]


def test_the_advantage_of_a_trajectory_is_that_of_its_own_reward_in_its_own_group() -> None:
    plan = planned(every_step, Ppo(policy_steps=2, policy_batch=12))
    expected = []
    for entry in plan.entries:
        group = np.array(REWARDS[entry.ticket])
        is_told = group.std() > 0
        expected.append((reward_of(entry) - group.mean()) / group.std() if is_told else 0.0)
    assert plan.advantages == pytest.approx(expected)


def test_every_step_of_every_trajectory_is_in_one_pass() -> None:
    plan = planned(every_step, Ppo(policy_steps=2, policy_batch=12))
    assert sorted(plan.rows_UB.flatten()) == list(range(len(plan.entries) * SLOTS))


def halves(seat: Seat = Seat(0)) -> tuple[list[tuple[Any, int]], list[tuple[Any, int]]]:  # noqa: B008
    """Trajectory and slot of the better rows and of the worse ones, pair by pair."""
    plan = planned(steps_of_pairs, Pso(policy_steps=3, policy_batch=2), seat)
    better_UP, worse_UP = np.split(plan.rows_UB, 2, axis=1)

    def named(rows: np.ndarray) -> list[tuple[Any, int]]:
        return [(plan.entries[row // SLOTS], row % SLOTS) for row in rows.flatten()]

    return named(better_UP), named(worse_UP)


def test_the_first_half_of_an_update_is_the_best_of_each_group_and_the_second_its_worst() -> None:
    better, worse = halves()
    assert [reward_of(entry) for entry, _ in better] == [max(REWARDS[e.ticket]) for e, _ in better]
    assert [reward_of(entry) for entry, _ in worse] == [min(REWARDS[e.ticket]) for e, _ in worse]


def test_a_pair_is_of_one_group_and_one_step() -> None:
    better, worse = halves()
    assert [(e.ticket, slot) for e, slot in better] == [(e.ticket, slot) for e, slot in worse]


def test_every_step_of_every_group_that_tells_something_is_paired_once() -> None:
    told = [ticket for ticket in REWARDS if ticket != 7]
    pairs = sorted((entry.ticket, slot) for entry, slot in halves()[0])
    assert pairs == [(ticket, slot) for ticket in told for slot in range(SLOTS)]


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (every_step, Ppo(policy_steps=2, policy_batch=12)),
        (steps_of_pairs, Pso(policy_steps=3, policy_batch=2)),
    ],
)
def test_two_ranks_share_the_rows_of_every_update(make: Any, settings: Ppo | Pso) -> None:
    whole_UB = planned(make, settings).rows_UB
    shares = [planned(make, settings, Seat(0, rank, 2)).rows_UB for rank in range(2)]
    assert shares[0].shape == shares[1].shape
    for update, rows_B in enumerate(whole_UB):
        assert sorted(np.concatenate([share[update] for share in shares])) == sorted(rows_B)


def test_a_pair_is_whole_on_its_rank() -> None:
    for rank in range(2):
        better, worse = halves(Seat(0, rank, 2))
        assert [(e.ticket, slot) for e, slot in better] == [(e.ticket, slot) for e, slot in worse]
        assert all(
            reward_of(b) > reward_of(w) for (b, _), (w, _) in zip(better, worse, strict=True)
        )
