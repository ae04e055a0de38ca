"""How many cycles in a row may tell nothing: counted, forgotten after a good one, and saved."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learner.groups import ScoredGroups
from learner.journal import Journal
from learner.methods.alternation import Alternating
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.uninformed import MOST_IN_A_ROW, NothingToLearnError, most_in_a_row
from learner.seat import Seat
from learner.settings.cycles import Cycles

SETTINGS = Cycles(cycles=20, groups_per_cycle=1, policy_steps=2)


class Told:
    """Policy steps of cycles, some of which tell nothing.

    Args:
        nothing: those cycles.
    """

    kind = ""

    def __init__(self, nothing: set[int]) -> None:
        self._nothing = nothing
        self.steps_taken = 0

    def prepare(self, groups: ScoredGroups, tickets: object) -> None: ...

    def begin(self, groups: ScoredGroups, tickets: object, version: int) -> None:
        if version in self._nothing:
            raise NothingToLearnError("all are alike: look at the reward")

    def step(self) -> dict[str, float]:
        self.steps_taken += 1
        return {"loss": 0.0}

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self.steps_taken = state["steps"]

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps_taken}


class Groups:
    """Groups that come as soon as they are asked for.

    Args:
        failed: tickets that never have all their rewards.
    """

    def __init__(self, failed: set[int] | None = None) -> None:
        self._failed = failed or set()
        self.moments: dict[str, tuple[float, float]] = {}
        self.standardised: list[list[int]] = []
        self.collected: list[range] = []
        self.resumed_at: list[int] = []
        self.index = SimpleNamespace(position="0-0")
        self.source = SimpleNamespace(capacity_groups=100, stopping=threading.Event())

    def collect(self, tickets: range, version: int, waited: object) -> None:
        self.collected.append(tickets)

    def complete(self, tickets: range) -> list[int]:
        return [ticket for ticket in tickets if ticket not in self._failed]

    def standardise(self, tickets: list[int]) -> None:
        self.standardised.append(tickets)

    def rewards(self, tickets: list[int]) -> Any:
        return torch.zeros(len(tickets), 2, 1)

    def top_up(self) -> None: ...

    def affords(self, tickets: range) -> bool:
        return True

    def resume(self, position: str, next_ticket: int) -> None:
        self.resumed_at.append(next_ticket)


def method_of(nothing: set[int], groups: Groups | None = None) -> tuple[Alternating, Told]:
    steps, engine = Told(nothing), SimpleNamespace(load=lambda folder: None)
    given: Any = {"groups": groups or Groups(), "policy_engine": engine}
    method = Alternating(
        SETTINGS,
        steps,
        **given,
        labels=["2step"],
        surrogate=None,
        journal=Journal(),
        seat=Seat(0),
    )
    return method, steps


def train(method: Alternating, cycles: range) -> None:
    for cycle in cycles:
        method.improve(cycle)
        method.adapt(cycle, last=False)


def braked(method: Alternating) -> list[float]:
    return [row["values"]["braked"] for row in method.journal.rows if row["phase"] == "policy"]


def test_a_cycle_that_tells_nothing_has_no_step_and_is_recorded_as_braked() -> None:
    method, steps = method_of({1, 2})
    method.prepare(lambda: None)
    train(method, range(4))
    assert braked(method) == [0.0, 1.0, 1.0, 0.0]
    assert steps.steps_taken == 2 * SETTINGS.policy_steps


def test_too_many_in_a_row_before_any_step_fail_with_the_reason() -> None:
    method, _ = method_of(set(range(20)))
    method.prepare(lambda: None)
    train(method, range(MOST_IN_A_ROW - 1))
    with pytest.raises(ValueError, match=r"5 cycles in a row, up to cycle 4.* look at the reward"):
        method.improve(MOST_IN_A_ROW - 1)


def test_too_many_in_a_row_after_some_steps_end_the_run_with_its_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    groups = Groups()
    method, _ = method_of(set(range(2, 20)), groups)
    method.prepare(lambda: None)
    train(method, range(2 + MOST_IN_A_ROW - 1))
    assert method.cycles == SETTINGS.cycles
    asked = len(groups.collected)
    train(method, range(6, 7))
    assert method.cycles == 7
    assert "5 cycles in a row, up to cycle 6" in caplog.text
    assert len(groups.collected) == asked  # nothing more
    # Who resumes it may have changed what it learns from: one cycle shows whether that helps.
    for nothing, cycles in ((set(range(2, 20)), 8), (set(range(2, 7)), 20)):
        resumed, _ = method_of(nothing)
        resumed.load(tmp_path, method.state())
        train(resumed, range(7, 8))
        assert resumed.cycles == cycles


def test_a_good_cycle_makes_the_ones_before_forgotten() -> None:
    good = MOST_IN_A_ROW - 1
    method, _ = method_of(set(range(20)) - {good})
    method.prepare(lambda: None)
    train(method, range(2 * good + 1))
    assert sum(braked(method)) == 2 * good


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    method, _ = method_of(set(range(20)))
    method.prepare(lambda: None)
    train(method, range(3))
    resumed, _ = method_of(set(range(20)))
    resumed.load(tmp_path, method.state())
    train(resumed, range(3, MOST_IN_A_ROW - 1))
    with pytest.raises(ValueError, match="5 cycles in a row, up to cycle 4"):
        resumed.improve(MOST_IN_A_ROW - 1)


def test_a_run_that_is_resumed_with_rounds_of_other_sizes_is_refused(tmp_path: Path) -> None:
    method, _ = method_of(set())
    method.prepare(lambda: None)
    train(method, range(3))
    assert method.state()["round_ends"] == [1, 2, 3, 4]
    resumed, _ = method_of(set())
    state = {**method.state(), "round_ends": [1, 2, 4, 6]}
    with pytest.raises(ValueError, match=r"round 3 of the 4 .* had 2 groups, and has 1"):
        resumed.load(tmp_path, state)


def test_a_preparation_goes_on_at_its_first_ticket(tmp_path: Path) -> None:
    method, _ = method_of(set())
    method.prepare(lambda: None)
    for prepared, ticket in ((False, 0), (True, 1)):
        groups = Groups()
        resumed, _ = method_of(set(), groups)
        resumed.load(tmp_path, {**method.state(), "prepared": prepared})
        assert groups.resumed_at == [ticket]


def test_the_first_groups_with_all_their_rewards_give_the_moments(tmp_path: Path) -> None:
    groups = Groups(failed={0, 1})
    method, _ = method_of(set(), groups)
    method.prepare(lambda: None)
    train(method, range(1))
    again = Groups(failed={0, 1})
    resumed, _ = method_of(set(), again)
    resumed.load(tmp_path, method.state())
    train(resumed, range(1, 4))
    assert (groups.standardised, again.standardised) == ([], [[2]])
    assert [*braked(method), *braked(resumed)] == [1.0, 1.0, 0.0, 0.0]


def test_what_another_rank_lacks_is_left_out_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    method, steps = method_of(set())
    method.prepare(lambda: None)
    monkeypatch.setattr("learner.methods.alternation.any_rank", lambda flag: True)
    train(method, range(1))
    assert (braked(method), steps.steps_taken) == ([1.0], 0)


def test_a_short_run_ends_when_all_of_it_told_nothing() -> None:
    assert [most_in_a_row(cycles) for cycles in (3, 5, 20)] == [3, 5, 5]


def test_what_is_drawn_from_is_looked_at_before_the_first_step() -> None:
    def check() -> None:
        raise NothingToLearnError("nothing")

    given: Any = {"policy": None, "draw": None}
    steps = DrawnSteps(**given, seat=Seat(0), check=check)
    groups: Any = None
    with pytest.raises(NothingToLearnError):
        steps.begin(groups, [], 0)
