"""Small studies on this machine: an arm that fails leaves the others their table, and a run that is
killed, or the whole study, goes on where it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Pipelines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_run_that_fails_is_told_and_one_that_was_killed_goes_on(
    pipelines: Pipelines, tmp_path: Path, environ: dict[str, str]
) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(
        f"config: {ROOT}/deploy/configs/smoke.yaml\n"
        f"settings: [{', '.join(pipelines.overrides)}, method.cycles=1]\n"
        "seeds: [3]\n"
        "arms:\n"
        "  plain: []\n"
        "  broken: [rewards.binding.kind=e2e_rewards:AlwaysRaises]\n"
        "  last: [method.reward_steps=last]\n"
        "scores: [exact_2step]\n"
    )
    command = [sys.executable, "-m", "deploy.study", str(file)]
    environ = {**environ, "FLEETUNE_RUNS": str(tmp_path / "runs")}

    def study(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags], env=environ, cwd=ROOT, capture_output=True, text=True
        )

    checked = study("--check")
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr.count("deploy.local") == 3
    log = tmp_path / "first.log"
    with log.open("w") as output:
        first = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=output, stderr=output)
    until_it_began(tmp_path / "runs" / "pair-plain-seed3", first, log)
    (plain,) = psutil.Process(first.pid).children()
    plain.kill()
    assert first.wait() == 1, log.read_text()
    told = log.read_text()
    assert "pair-plain-seed3 ended with status 137" in told
    assert told.count(": pair-plain-seed3\n") == 2
    assert "pair-broken-seed3 ended with status 1" in told
    assert told.count(": pair-broken-seed3\n") == 1
    table = (tmp_path / "runs" / "pair" / "study.md").read_text()
    assert "| plain | 1/1 |" in table
    assert "| broken | 0/1 |" in table
    assert "| last | 1/1 |" in table
    assert "3 runs, 2 of them finished" in study("--check").stderr


def until_it_began(run: Path, study: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while not (run / "config.json").exists():
        assert study.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_study_runs_what_is_missing_and_nothing_else(
    pipelines: Pipelines, tmp_path: Path, environ: dict[str, str]
) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text(
        f"config: {ROOT}/deploy/configs/smoke.yaml\n"
        f"settings: [{', '.join(pipelines.overrides)}]\n"
        "seeds: [3]\n"
        "tuning: {seed: 9, score: reward_2step, settings: [evaluation.seed=77]}\n"
        "arms:\n"
        "  plain: {tries: [[method.learning_rate=1e-5], [method.learning_rate=1e-4]]}\n"
        "  last: {settings: [method.reward_steps=last], tuned_as: plain}\n"
    )
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "deploy.study", str(file)]
    environ = {**environ, "FLEETUNE_RUNS": str(runs)}

    def again() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)

    def killed_in(run: str) -> str:
        """What it said until a kill, as soon as the run had begun."""
        log = tmp_path / f"until-{run}.log"
        with log.open("w") as output:
            study = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=output, stderr=output)
            until_it_began(runs / run, study, log)
            study.send_signal(signal.SIGKILL)
            study.wait()
        return log.read_text()

    def ended() -> dict[str, int]:
        """When each run ended."""
        return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}

    killed_in("tuned-plain-try1")
    after_tries = ended()
    assert set(after_tries) == {"tuned-plain-try0"}
    among_seeds = killed_in("tuned-last-seed3")
    assert "run 1 of 1: tuned-plain-try1" in among_seeds
    assert "run 2 of 2: tuned-last-seed3" in among_seeds
    after_seeds = ended()
    assert set(after_seeds) == {"tuned-plain-try0", "tuned-plain-try1", "tuned-plain-seed3"}
    rest = again()
    assert rest.returncode == 0, rest.stderr
    assert "run 1 of 1: tuned-last-seed3" in rest.stderr
    assert after_tries.items() <= after_seeds.items() <= ended().items()
    tuning = json.loads((runs / "tuned" / "tuning.json").read_text())["plain"]
    scores = [tried["score"] for tried in tuning["tries"]]
    assert None not in scores
    rates = ["method.learning_rate=1e-5", "method.learning_rate=1e-4"]
    best = rates[scores.index(max(scores))]
    assert tuning["values"] == [best]
    rate = json.loads((runs / "tuned-last-seed3" / "config.json").read_text())["method"]
    assert rate["learning_rate"] == float(best.split("=")[1])
    # What the untouched policy scores is measured by one of the runs with these held-out pictures.
    told = among_seeds + rest.stderr
    assert "its evaluation before training is that of a finished run" in told
    assert all(rate in (runs / "tuned" / "study.html").read_text() for rate in rates)

    with tarfile.open(runs / "tuned" / "runs.tar.xz") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    environ["FLEETUNE_RUNS"] = str(tmp_path / "elsewhere")
    unpacked = again()
    assert (unpacked.returncode, "run 1 of" in unpacked.stderr) == (0, False)
    tables = [(folder / "tuned" / "study.md") for folder in (runs, tmp_path / "elsewhere")]
    assert tables[0].read_text() == tables[1].read_text()

    environ["FLEETUNE_RUNS"] = str(runs)
    nothing = again()
    assert (nothing.returncode, "run 1 of" in nothing.stderr) == (0, False)
