"""Ctrl-C in the middle of a run, and the run that continues it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Pipelines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]
MORE_CYCLES = 2


@dataclass(frozen=True)
class Interrupted:
    """Both starts of the run."""

    folder: Path
    stopped_status: int
    stopped: dict[str, Any]
    left_over: list[str]
    cycles: int
    resumed_status: int
    resumed: dict[str, Any]
    points: list[dict[str, Any]]
    output: str


@pytest.fixture(scope="module")
def run(pipelines: Pipelines, environ: dict[str, str], runs: Path) -> Interrupted:
    folder, log = runs / "interrupted", runs / "interrupted.log"

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        preset = ["deploy/configs/smoke.yaml", f"folder={runs}", *pipelines.overrides]
        command = [sys.executable, "-m", "deploy.local", "--run", folder.name, "--cpus", "2"]
        flags = [each for each in arguments if each.startswith("--")]
        overrides = [each for each in arguments if not each.startswith("--")]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*command, *flags, "--", *preset, *overrides],
                cwd=ROOT,
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    runner = start("method.cycles=1000")
    try:
        _wait_for(lambda: len(_cycles(folder)) > 2 or runner.poll() is not None, log)
    except BaseException:
        # Its head and all below it end with it.
        runner.kill()
        runner.wait()
        raise
    family = psutil.Process(runner.pid).children(recursive=True)
    runner.send_signal(signal.SIGINT)
    stopped_status = runner.wait(150)
    left_over = [" ".join(each.cmdline()) for each in family if each.is_running()]
    stopped = json.loads((folder / "summary.json").read_text())
    cycles = max(int(path.name[:8]) for path in (folder / "checkpoints").iterdir()) + MORE_CYCLES
    resumed_status = start("--resume", f"method.cycles={cycles}").wait(400)
    return Interrupted(
        folder,
        stopped_status,
        stopped,
        left_over,
        cycles,
        resumed_status,
        json.loads((folder / "summary.json").read_text()),
        _points(folder),
        log.read_text(),
    )


def test_the_interrupted_run_says_that_it_was_stopped(run: Interrupted) -> None:
    assert (run.stopped_status, run.stopped["status"]) == (130, "stopped"), run.output


def test_nothing_of_the_interrupted_run_lives_on(run: Interrupted) -> None:
    assert run.left_over == []


def test_the_resumed_run_finishes(run: Interrupted) -> None:
    assert (run.resumed_status, run.resumed["status"]) == (0, "finished"), run.output


def test_the_curves_go_on_without_a_gap_or_a_double(run: Interrupted) -> None:
    steps = [point["step"] for point in run.points if point["phase"] == "policy"]
    assert steps == list(range(run.cycles))


def test_the_curves_of_pre_training_stay(run: Interrupted) -> None:
    steps = [point["step"] for point in run.points if point["phase"] == "pretrain"]
    assert steps == [0, 2, 4]


def test_the_first_evaluation_is_that_of_the_untouched_policy(run: Interrupted) -> None:
    assert run.resumed["before"] == run.stopped["before"] != run.resumed["after"]


def test_every_group_was_scored_once_over_both_starts(run: Interrupted) -> None:
    assert run.resumed["records"]["committed"] == 3 * (8 + 4 * run.cycles)


def _wait_for(condition: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _cycles(folder: Path) -> list[int]:
    return [point["step"] for point in _points(folder) if point["phase"] == "fresh"]


def _points(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
