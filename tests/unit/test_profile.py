"""Where the seconds of a run went: an account of what its actors tell, with nothing left over."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import profile
from deploy.profile import Profile, main, read_profile


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(profile.time, "monotonic", clock)
    return clock


@pytest.fixture
def note(clock: Clock, tmp_path: Path) -> Callable[..., dict[str, dict[str, float]]]:
    """Notes one look a number of seconds after the last; the account as it is then."""
    kept = Profile(tmp_path)

    def noted(
        seconds: float, workers: dict[str, Any], learner: dict[str, float] | None = None
    ) -> dict[str, dict[str, float]]:
        clock.now += seconds
        page = {"fleets": {"samplers": {"workers": workers}}}
        report = {"stage": "training", "seconds": learner or {}}
        kept.note(page, report, evaluates=False)
        kept.write()
        return read_profile(tmp_path)

    return noted


def working(**seconds: float) -> dict[str, Any]:
    return {"state": "working", "images": 3, **seconds}


def test_what_an_actor_tells_and_what_is_left_make_up_its_time(note: Callable[..., Any]) -> None:
    note(2, {"sampler-0": working(wait_s=0.5, sample_s=1.0)})
    seconds = note(4, {"sampler-0": working(wait_s=0.5, sample_s=4.0)})
    assert seconds["samplers"] == {"wait": 0.5, "sample": 4.0, "other": 1.5}
    assert sum(seconds["samplers"].values()) == 6


def test_an_actor_without_a_worker_has_its_state_for_a_stage(note: Callable[..., Any]) -> None:
    note(2, {"sampler-0": {"state": "placing"}})
    seconds = note(3, {"sampler-0": {"state": "building"}, "sampler-1": {"state": "placing"}})
    assert seconds["samplers"] == {"placing": 5, "building": 3}


def test_a_role_has_the_seconds_of_all_its_actors(note: Callable[..., Any]) -> None:
    both = {name: working(sample_s=2.0) for name in ("sampler-0", "sampler-1")}
    assert note(2, both)["samplers"] == {"sample": 4, "other": 0}


def test_an_actor_that_begins_anew_takes_nothing_back(note: Callable[..., Any]) -> None:
    note(5, {"sampler-0": working(sample_s=5.0)})
    seconds = note(1, {"sampler-0": working(sample_s=0.5)})
    assert seconds["samplers"]["sample"] == 5
    seconds = note(1, {"sampler-0": working(sample_s=1.5)})
    assert seconds["samplers"]["sample"] == 6


def test_a_resumed_run_goes_on_with_its_account_and_counts_no_second_twice(
    clock: Clock, tmp_path: Path, note: Callable[..., Any]
) -> None:
    note(10, {}, learner={"policy": 8.0, "waiting_for_samplers": 1.0})
    again = Profile(tmp_path)
    clock.now += 2
    again.note(
        {},
        {"stage": "training", "seconds": {"policy": 9.0, "waiting_for_samplers": 1.0}},
        evaluates=True,
    )
    clock.now += 2
    again.note(
        {},
        {"stage": "training", "seconds": {"policy": 11.0, "waiting_for_samplers": 1.0}},
        evaluates=True,
    )
    again.write()
    learner = read_profile(tmp_path)["learner"]
    assert 10 <= learner["policy"] <= 12
    assert sum(learner.values()) == pytest.approx(14)


def test_the_run_itself_is_at_one_stage_at_a_time(note: Callable[..., Any]) -> None:
    assert note(7, {})["run"] == {"training": 7}


def test_the_command_prints_it_and_says_where_there_is_none(
    note: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    note(4, {"sampler-0": working(sample_s=3.0)})
    monkeypatch.setattr("sys.argv", ["profile", str(tmp_path)])
    assert main() == 0
    assert "75.0 %" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["profile", str(tmp_path / "nothing")])
    assert main() == 2
    assert "profile.json" in capsys.readouterr().err
