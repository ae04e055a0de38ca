"""Progress lines and the curves' file."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.run.curves import Curves, read_points
from deploy.run.files import METRICS_FILE
from deploy.run.progress import Estimate, Progress, duration


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _shown(clock: Clock, *snapshots: dict[str, object], seconds_between: float = 1.0) -> list[str]:
    stream = io.StringIO()
    with Progress(total_cycles=20, stream=stream, clock=clock) as progress:
        for snapshot in snapshots:
            progress.show(snapshot)
            clock.now_s += seconds_between
    return stream.getvalue().splitlines()


def test_a_log_line_names_every_value_that_is_known(clock: Clock) -> None:
    snapshot: dict[str, object] = {
        "stage": "cycles", "cycle": 3, "rewards": {"1step": 0.5, "2step": 0.625},
        "pair_accuracy": 0.75, "samples_per_s": 12.34, "queue": 7, "failures": 0,
    }  # fmt: skip
    assert _shown(clock, snapshot) == [
        "cycles | cycle 3/20 | reward 1step 0.500 | reward 2step 0.625 | pair accuracy 0.750 | "
        "samples/s 12.3 | queue 7 | failed 0"
    ]


def test_what_is_unknown_is_left_out(clock: Clock) -> None:
    assert _shown(clock, {"stage": "pretrain", "stage_done": 0.25}) == ["pretrain 25 %"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many", None, [1]])
def test_a_value_that_is_no_number_is_left_out(clock: Clock, value: object) -> None:
    assert _shown(clock, {"stage": "cycles", "rewards": {"2step": value}}) == ["cycles"]


def test_an_empty_snapshot_is_shown_as_unknown(clock: Clock) -> None:
    assert _shown(clock, {}) == ["–"]


def test_a_log_gets_a_line_every_few_seconds_only(clock: Clock) -> None:
    snapshots = [{"stage": "cycles", "queue": i} for i in range(11)]
    assert _shown(clock, *snapshots) == [f"cycles | queue {i}" for i in (0, 5, 10)]


def test_a_change_of_stage_is_logged_at_once(clock: Clock) -> None:
    assert _shown(clock, {"stage": "pretrain"}, {"stage": "cycles"}) == ["pretrain", "cycles"]


def test_a_terminal_shows_the_newest_values(clock: Clock) -> None:
    stream = Terminal()
    with Progress(total_cycles=2, stream=stream, clock=clock) as progress:
        progress.show({"stage": "cycles", "cycle": 1})
        progress.show({"stage": "cycles", "cycle": 2})
    assert "2/2" in stream.getvalue()


def test_square_brackets_are_text_and_no_markup(clock: Clock) -> None:
    assert _shown(clock, {"stage": "[red]cycles[/red]"}) == ["[red]cycles[/red]"]


def test_the_rate_comes_from_the_counts(clock: Clock) -> None:
    estimate = Estimate(10, clock)
    for samples in (0, 30):
        estimate.update({"samples": samples})
        clock.now_s += 10
    assert estimate.samples_per_s == pytest.approx(3.0)


def test_an_old_count_no_longer_weighs_on_the_rate(clock: Clock) -> None:
    estimate = Estimate(10, clock)
    for samples, pause_s in ((0, 1000), (1000, 10), (1050, 0)):
        estimate.update({"samples": samples})
        clock.now_s += pause_s
    assert estimate.samples_per_s == pytest.approx(5.0)


def test_the_time_left_is_the_cycles_left_at_the_pace_so_far(clock: Clock) -> None:
    estimate = Estimate(10, clock)
    for cycle in (0, 1, 2):
        estimate.update({"cycle": cycle})
        clock.now_s += 30 if cycle < 2 else 0
    assert estimate.left_s == pytest.approx(240.0)


def test_the_time_before_the_first_cycle_is_no_cycles(clock: Clock) -> None:
    estimate = Estimate(10, clock)
    stages = ("collecting", "fitting the surrogate", "training")
    for cycle, stage, pause_s in ((0, stages[0], 300), (0, stages[1], 200), (0, stages[2], 20)):
        estimate.update({"cycle": cycle, "stage": stage})
        clock.now_s += pause_s
    estimate.update({"cycle": 1, "stage": "training"})
    assert estimate.left_s == pytest.approx(9 * 20.0)


def test_the_time_left_of_a_resumed_run_counts_from_where_it_began(clock: Clock) -> None:
    estimate = Estimate(10, clock)
    for cycle in (6, 7):
        estimate.update({"cycle": cycle})
        clock.now_s += 30 if cycle < 7 else 0
    assert estimate.left_s == pytest.approx(90.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, None), (12.4, "12 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_a_duration_reads_naturally(seconds: float | None, text: str | None) -> None:
    assert duration(seconds) == text


def _write(folder: Path, clock: Clock, steps: range, *, resume_step: int | None = None) -> None:
    with Curves(folder, resume_step=resume_step, clock=clock) as curves:
        for step in steps:
            clock.now_s += 1
            curves.write(step, "cycle", {"reward": step / 10})


def test_points_are_read_as_they_were_written(tmp_path: Path, clock: Clock) -> None:
    _write(tmp_path, clock, range(3))
    points = read_points(tmp_path / METRICS_FILE)
    assert [(point.step, point.phase, point.values) for point in points] == [
        (step, "cycle", {"reward": step / 10}) for step in range(3)
    ]


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path, clock: Clock) -> None:
    _write(tmp_path, clock, range(5))
    _write(tmp_path, clock, range(3, 6), resume_step=2)
    assert [point.step for point in read_points(tmp_path / METRICS_FILE)] == [0, 1, 2, 3, 4, 5]


def test_the_time_between_two_starts_does_not_count(tmp_path: Path, clock: Clock) -> None:
    _write(tmp_path, clock, range(3))
    clock.now_s += 5000
    _write(tmp_path, clock, range(3, 4), resume_step=2)
    assert read_points(tmp_path / METRICS_FILE)[-1].wall_s == pytest.approx(4.0)


def test_a_new_run_in_the_same_folder_begins_anew(tmp_path: Path, clock: Clock) -> None:
    _write(tmp_path, clock, range(5))
    _write(tmp_path, clock, range(2))
    assert [point.step for point in read_points(tmp_path / METRICS_FILE)] == [0, 1]


def test_a_torn_last_line_is_dropped_on_resuming(tmp_path: Path, clock: Clock) -> None:
    _write(tmp_path, clock, range(2))
    with (tmp_path / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "wal')
    _write(tmp_path, clock, range(2, 3), resume_step=1)
    assert [point.step for point in read_points(tmp_path / METRICS_FILE)] == [0, 1, 2]


def test_a_value_that_is_no_number_leaves_the_line_valid(tmp_path: Path, clock: Clock) -> None:
    with Curves(tmp_path, clock=clock) as curves:
        curves.write(0, "cycle", {"good": 1.0, "bad": float("nan")})
    line = (tmp_path / METRICS_FILE).read_text(encoding="utf-8")
    assert json.loads(line)["values"] == {"good": 1.0}


def _tensorboard(folder: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars("cycle/reward")]


def test_a_phase_that_was_over_keeps_its_points_over_a_resumption(
    tmp_path: Path, clock: Clock
) -> None:
    with Curves(tmp_path, clock=clock) as curves:
        curves.write(600, "pretrain", {"loss": 1.0})
        curves.write(7, "cycle", {"reward": 1.0})
    with Curves(tmp_path, resume_step=2, done_phases=("pretrain",), clock=clock):
        pass
    assert [point.step for point in read_points(tmp_path / METRICS_FILE)] == [600]


def test_tensorboard_reads_the_same_curve_over_a_resumption(tmp_path: Path, clock: Clock) -> None:
    _write(tmp_path, clock, range(5))
    # TensorBoard orders event files by the second in their name; a resumption is never that quick.
    time.sleep(1.1)
    _write(tmp_path, clock, range(3, 6), resume_step=2)
    assert _tensorboard(tmp_path) == [(step, step / 10) for step in range(6)]


def test_tensorboard_keeps_a_phase_that_goes_on_past_the_checkpoint(
    tmp_path: Path, clock: Clock
) -> None:
    with Curves(tmp_path, clock=clock) as curves:
        for step in range(5):
            curves.write(step, "cycle", {"reward": step / 10})
    time.sleep(1.1)
    with Curves(tmp_path, resume_step=2, done_phases=("cycle",), clock=clock):
        pass
    assert _tensorboard(tmp_path) == [(step, step / 10) for step in range(5)]


def test_what_a_learner_tells_once_more_takes_the_place_of_what_it_told(
    tmp_path: Path, clock: Clock
) -> None:
    with Curves(tmp_path, clock=clock) as curves:
        curves.write(600, "pretrain", {"loss": 1.0})
        for step in (0, 1, 2, 3, 1, 2):  # it was placed anew after three steps
            clock.now_s += 1
            curves.write(step, "cycle", {"reward": clock.now_s})
            curves.write(step, "cycle", {"kl": 0.0})
    points = read_points(tmp_path / METRICS_FILE)
    told = [(point.phase, point.step) for point in points if "kl" not in point.values]
    assert told == [("pretrain", 600), ("cycle", 0), ("cycle", 1), ("cycle", 2)]
    rewards = [point.values["reward"] for point in points if "reward" in point.values]
    assert rewards == [reward for _, reward in _tensorboard(tmp_path)]
    assert np.diff(rewards).tolist() == [4.0, 1.0]


def test_the_same_step_told_once_more_stands_once(tmp_path: Path, clock: Clock) -> None:
    with Curves(tmp_path, clock=clock) as curves:
        for _ in range(2):
            curves.write(4, "cycle", {"reward": 0.5})
            curves.write(4, "cycle", {"kl": 0.1})
    points = read_points(tmp_path / METRICS_FILE)
    assert [point.values for point in points] == [{"reward": 0.5}, {"kl": 0.1}]
