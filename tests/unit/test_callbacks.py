"""Callbacks of a run: what they are told, and that none can end a run or hold it up."""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.callbacks import Callbacks, Caller, RunInfo, callbacks_of, check_callback
from deploy.run.curves import Curves, Point
from deploy.run.plan import check_environment
from deploy.settings.problems import ConfigError
from deploy.settings.run_config import RunConfig, load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"


class Remembers:
    """Notes its calls in the order that they come."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_start(self, run: RunInfo) -> None:
        self.calls.append(("start", run.name, run.resumed, run.config["seed"]))

    def on_points(self, points: Sequence[Point]) -> None:
        self.calls.append(("points", [point.step for point in points]))

    def on_evaluation(
        self, cycle: int, metrics: Mapping[str, float], pictures: Path | None
    ) -> None:
        self.calls.append(("evaluation", cycle, dict(metrics), pictures and pictures.name))

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.calls.append(("end", summary["status"]))


class Fails:
    """Raises as often as it is told, then works."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.ended = False

    def on_points(self, points: Sequence[Point]) -> None:
        if self.left > 0:
            self.left -= 1
            raise RuntimeError("boom")

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.ended = True


class FailsEveryOther:
    """Even points, that is."""

    def on_points(self, points: Sequence[Point]) -> None:
        if points[0].step % 2 == 0:
            raise RuntimeError("boom")


class Waits:
    """Works when it is let."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.seen: list[int] = []
        self.ended = False

    def on_points(self, points: Sequence[Point]) -> None:
        assert self.may_go.wait(30)
        self.seen += [point.step for point in points]

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self.ended = True


def point(step: int, phase: str = "cycle") -> Point:
    return Point(step, 0.5, phase, {"reward_2step": step / 10})


def config(*overrides: str) -> RunConfig:
    return load_config(SMOKE, ["name=mine", *overrides])


def told(folder: Path, callback: Any, batches: Sequence[Sequence[Point]], **options: Any) -> Caller:
    caller = Caller("mine", lambda: callback, **options)
    callbacks = Callbacks([caller], folder)
    callbacks.start(config(), resumed=False)
    for points in batches:
        callbacks.points(points)
    callbacks.end({"status": "finished"})
    return caller


def test_a_callback_is_told_of_the_whole_run_in_order(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("before", "cycle-000002", "after"):
        np.savez(tmp_path / "pictures" / f"{name}.npz", images=np.zeros(1))
    callback = Remembers()
    batches = [[point(0, "evaluation"), point(1)], [], [point(2), point(2, "evaluation")]]
    told(tmp_path, callback, [*batches, [point(3, "evaluation")]])
    assert callback.calls == [
        ("start", "mine", False, 0),
        ("points", [0, 1]),
        ("evaluation", 0, {"reward_2step": 0.0}, "before.npz"),
        ("points", [2, 2]),
        ("evaluation", 2, {"reward_2step": 0.2}, "cycle-000002.npz"),
        ("points", [3]),
        ("evaluation", 3, {"reward_2step": 0.3}, "after.npz"),
        ("end", "finished"),
    ]


def test_a_failure_is_logged_with_its_traceback_and_the_callback_is_called_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = Fails(2)
    caller = told(tmp_path, callback, [[point(n)] for n in range(5)])
    assert caller.stats() == {"failures": 2, "dropped": 0, "out": False}
    assert callback.ended
    assert caplog.text.count("RuntimeError: boom") == 2
    assert "Traceback" in caplog.text


def test_failures_that_are_not_in_a_row_do_not_take_it_out(tmp_path: Path) -> None:
    caller = told(tmp_path, FailsEveryOther(), [[point(n)] for n in range(12)])
    assert caller.stats() == {"failures": 6, "dropped": 0, "out": False}


def test_three_failures_in_a_row_take_it_out_and_no_other(tmp_path: Path) -> None:
    failing, other = Fails(100), Remembers()
    callers = [Caller("failing", lambda: failing), Caller("other", lambda: other)]
    callbacks = Callbacks(callers, tmp_path)
    for n in range(6):
        callbacks.points([point(n)])
    callbacks.end({"status": "finished"})
    assert failing.left == 97
    assert not failing.ended
    assert callbacks.stats()["failing"]["out"]
    assert [call[0] for call in other.calls] == ["points"] * 6 + ["end"]


def test_one_that_cannot_be_made_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise OSError("no such service")

    callbacks = Callbacks([Caller("mine", refuse)], tmp_path)
    callbacks.end({"status": "finished"})
    assert "callback mine cannot be made" in caplog.text
    assert callbacks.stats() == {"mine": {"failures": 1, "dropped": 0, "out": True}}


def test_a_slow_one_holds_nobody_up_and_what_it_misses_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    callback = Waits()
    caller = Caller("slow", lambda: callback, room=4)
    callbacks = Callbacks([caller], tmp_path)
    begun = time.monotonic()
    for n in range(50):
        callbacks.points([point(n)])
    assert time.monotonic() - begun < 5
    callback.may_go.set()
    callbacks.end({"status": "finished"})
    assert callback.ended
    assert callback.seen == sorted(set(callback.seen))
    assert callback.seen[:4] == [0, 1, 2, 3]
    assert caller.dropped == 50 - len(callback.seen) >= 45
    assert f"callback slow missed {caller.dropped} calls" in caplog.text


def test_one_that_hangs_is_left_behind_after_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = Waits()
    callbacks = Callbacks([Caller("stuck", lambda: callback)], tmp_path)
    callbacks.points([point(0)])
    begun = time.monotonic()
    callbacks.end({"status": "finished"}, within_s=0.2)
    assert time.monotonic() - begun < 5
    assert "callback stuck is still at work" in caplog.text
    callback.may_go.set()


def test_a_config_names_callbacks_by_class_with_arguments(tmp_path: Path) -> None:
    given = f"callbacks=[{{kind: '{__name__}:Fails', args: {{times: 1}}}}]"
    callbacks = callbacks_of(config(given), tmp_path)
    callbacks.points([point(1)])
    callbacks.end({"status": "finished"})
    assert callbacks.stats() == {f"{__name__}:Fails": {"failures": 1, "dropped": 0, "out": False}}


def test_two_of_a_kind_are_told_apart(tmp_path: Path) -> None:
    each = f"{{kind: '{__name__}:Remembers'}}"
    callbacks = callbacks_of(config(f"callbacks=[{each}, {each}]"), tmp_path)
    callbacks.end({"status": "finished"})
    assert list(callbacks.stats()) == [f"{__name__}:Remembers", f"{__name__}:Remembers (1)"]


def test_what_is_no_callback_is_told_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="has none of the methods on_start, on_points"):
        check_callback("collections:Counter", {})
    with pytest.raises(ValueError, match="unknown callback 'x'; for your own write"):
        check_callback("x", {})
    with pytest.raises(ValueError, match="given tmies, it takes times"):
        check_callback(f"{__name__}:Fails", {"tmies": 1})
    problems = check_environment(config("callbacks=[{kind: 'not_installed_here:Mine'}]"), {})
    assert any(text.startswith("callbacks.0: cannot import") for text in problems)


def test_a_misspelt_key_of_a_callback_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.0\.knd: there is no .* did you mean .*kind"):
        config("callbacks=[{kind: 'a:B', knd: 1}]")


def test_curves_tell_what_they_have_written(tmp_path: Path) -> None:
    with Curves(tmp_path) as curves:
        written = curves.write(4, "cycle", {"a": 1.0, "b": float("nan")})
    assert (written.step, written.phase, written.values) == (4, "cycle", {"a": 1.0})
