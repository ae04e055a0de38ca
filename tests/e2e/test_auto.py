"""A whole run whose samplers are left to what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local_head import LocalHead
from tests.e2e.conftest import ROOT, SMOKE, START_S, Pipelines
from tests.e2e.waiting_samplers import WAIT_FILE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
RUN = "auto"
MEMBERS, PRETRAIN, PER_CYCLE, CYCLES = 3, 200, 4, 2
SETTINGS = {
    "name": RUN,
    "actors.auto": "[1,3]",
    "actors.num_cpus": 0.1,
    "actors.group_size": MEMBERS,
    "actors.groups_per_batch": 1,
    "replay.capacity_groups": PRETRAIN + PER_CYCLE * CYCLES,
    "method.pretrain.groups": PRETRAIN,
    "method.groups_per_cycle": PER_CYCLE,
    "method.cycles": CYCLES,
}


@pytest.fixture
def waiting_head(environ: dict[str, str], tmp_path: Path) -> Iterator[LocalHead]:
    with LocalHead(num_cpus=2, environ={**environ, WAIT_FILE: str(tmp_path / "wait")}) as head:
        assert head.wait_ready(timeout_s=2 * START_S, should_stop=lambda: False)
        yield head


def test_samplers_become_more_while_the_learner_waits_for_them(
    waiting_head: LocalHead, pipelines: Pipelines, tmp_path: Path
) -> None:
    wait_file, runs, log = tmp_path / "wait", tmp_path / "runs", tmp_path / "log"
    wait_file.touch()
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = waiting_head.submit_command(
        [sys.executable, "-m", "waiting_samplers", str(SMOKE), *pipelines.overrides, *settings],
        job=RUN,
        folder=ROOT,
        env_vars={"FLEETUNE_RUNS": str(runs)},
    )

    def decisions() -> list[dict[str, object]]:
        file = runs / RUN / "fleet.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    environ = waiting_head.client_environ()
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT) as job,
    ):
        deadline = time.monotonic() + 600
        while len(decisions()) < 2:
            assert time.monotonic() < deadline, log.read_text()
            assert job.poll() is None, log.read_text()
            time.sleep(0.5)
        wait_file.unlink()
        assert job.wait(600) == 0, log.read_text()

    grown = [(each["role"], each["from"], each["to"]) for each in decisions()[:2]]
    assert grown == [("samplers", 1, 2), ("samplers", 2, 3)]
    assert all("the learner waits for them" in str(each["why"]) for each in decisions()[:2])
    assert "samplers: 1 -> 2, the learner waits for them" in log.read_text()
    records = json.loads((runs / RUN / "summary.json").read_text())["records"]
    assert records["committed"] == MEMBERS * (PRETRAIN + PER_CYCLE * CYCLES)
    assert (records["failed"], records["pending"], records["open_tickets"]) == (0, 0, 0)
