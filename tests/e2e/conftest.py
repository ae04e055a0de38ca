"""Tiny untrained pipelines, and runs of them as Ray jobs on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local_head import LocalHead

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "deploy" / "configs" / "smoke.yaml"
START_S = 120.0
RUN_S = 420.0


@dataclass(frozen=True)
class Pipelines:
    """A two-step model and its teacher."""

    student: Path
    teacher: Path

    @property
    def overrides(self) -> list[str]:
        return [f"model.path={self.student}", f"model.teacher={self.teacher}"]


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        output: what the job printed.
    """

    status: int
    output: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def points(self) -> list[dict[str, Any]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def pipelines(pipelines: Path) -> Pipelines:
    return Pipelines(pipelines / "lcm", pipelines / "base")


@pytest.fixture(scope="session")
def environ() -> dict[str, str]:
    """With this folder's rewards in reach of the workers, and without a Redis of the user's."""
    kept = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
    return {**kept, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def head(environ: dict[str, str]) -> Iterator[LocalHead]:
    """One Ray for all runs that need none of their own: its start takes longer than a run."""
    with LocalHead(num_cpus=2, environ=environ) as running:
        assert running.wait_ready(timeout_s=START_S, should_stop=lambda: False)
        yield running


@pytest.fixture(scope="session")
def run_job(head: LocalHead, pipelines: Pipelines, runs: Path) -> Callable[..., Ended]:
    """Submits `deploy.launch` of a preset under a name, and waits for its end.

    `job` is the submission's own name, where the run's name was submitted before.
    """

    def run(
        name: str,
        *overrides: str,
        job: str | None = None,
        preset: Path = SMOKE,
        resume: bool = False,
    ) -> Ended:
        launch = [sys.executable, "-m", "deploy.launch", *(["--resume"] if resume else [])]
        launch += [str(preset), f"name={name}"]
        models = pipelines.overrides if preset == SMOKE else [f"model.path={pipelines.teacher}"]
        command = head.submit_command(
            [*launch, *models, *overrides],
            job=job or name,
            folder=ROOT,
            env_vars={"FLEETUNE_RUNS": str(runs)},
        )
        done = subprocess.run(
            command, env=head.client_environ(), capture_output=True, text=True, timeout=RUN_S
        )
        info = head.request("GET", f"/api/jobs/{job or name}")
        return Ended(info["driver_exit_code"], done.stdout + done.stderr, runs / name)

    return run
