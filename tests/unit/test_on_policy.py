"""What on-policy steps log of a clip that holds every row of a cycle."""

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from learner.journal import Journal
from learner.methods.on_policy import OnPolicySteps, Plan
from learner.seat import Seat
from learner.settings.on_policy import Pso
from learner.transitions import Transitions

UPDATES = 2
SETTINGS = Pso(policy_steps=UPDATES, policy_batch=1)


class Scripted:
    """A policy whose updates tell the given clip fractions."""

    def __init__(self, shares: list[float]) -> None:
        self._shares = shares
        self.steps_taken = 0

    def remembered(self, taken: Transitions, *, rows_at_once: int) -> Transitions:
        return taken

    def step(self, batch: Transitions) -> dict[str, float]:
        self.steps_taken += 1
        return {"clip_fraction": self._shares.pop(0)}

    def to_json(self) -> dict[str, Any]:
        return {"step": self.steps_taken}

    def from_json(self, state: dict[str, Any]) -> None:
        self.steps_taken = state["step"]


class OneStep:
    """Every trajectory has one step, from a latent of zeros."""

    weights = (1.0,)

    def step_of(self, entry: object, slot: int) -> int:
        return slot

    def states(self, replay: object, wanted: list[object]) -> list[torch.Tensor]:
        return [torch.zeros(4, 2, 2) for _ in wanted]


def plan(*given: object) -> Plan:
    """One trajectory, for every update."""
    entry: Any = SimpleNamespace(prompt="a", seed=1, member=0)
    return Plan([entry], [0.0], np.zeros((UPDATES, 1), np.int64), replaces=False)


def run(
    shares: list[float], *, rank: int = 0, resumed: dict[str, Any] | None = None
) -> OnPolicySteps:
    """Cycles until there are no more clip fractions."""
    policy, cycles = Scripted(shares), len(shares) // UPDATES
    fakes: Any = policy, OneStep(), plan
    steps = OnPolicySteps(SETTINGS, *fakes, Journal(), Seat(0, rank, 2))
    groups: Any = SimpleNamespace(
        of_version=lambda tickets, version: tickets,
        tell_fetched=lambda entries: None,
        source=SimpleNamespace(replay=None),
    )
    folder: Any = None
    if resumed is not None:
        steps.load(folder, resumed)
    for cycle in range(cycles):
        steps.begin(groups, [cycle], cycle)
        for _ in range(UPDATES):
            steps.step()
    return steps


CLIPPED, GOOD = [1.0, 1.0], [0.0, 1.0]


def test_a_clip_that_holds_all_is_told_when_it_begins_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        run([*GOOD, *CLIPPED, *CLIPPED, *GOOD, *GOOD])
    began, over = [record for record in caplog.records if "ratio_clip" in record.message]
    assert (began.levelname, over.levelname) == ("WARNING", "INFO")
    assert began.message.startswith("cycle 1: every row of every update was beyond")
    assert over.message.startswith("cycle 3: rows are within method.ratio_clip again")


def test_only_the_first_rank_tells(caplog: pytest.LogCaptureFixture) -> None:
    run([*CLIPPED], rank=1)
    assert caplog.messages == []


def test_a_resumed_run_does_not_tell_again(caplog: pytest.LogCaptureFixture) -> None:
    state = run([*CLIPPED]).state()
    caplog.clear()
    run([*CLIPPED], resumed=state)
    assert caplog.messages == []
