"""A run on a cluster whose nodes join and leave: its fleet follows, its ledger stays whole."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buffer.records import START, IndexEntry
from deploy.local_head import LocalHead
from deploy.quarantine import opened
from tests.e2e.conftest import ROOT, SMOKE, START_S
from tests.e2e.ray_nodes import RayNode, actors_of, living_nodes
from tests.e2e.waiting_samplers import WAIT_FILE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
RUN = "nodes"
MEMBERS, PRETRAIN, PER_CYCLE, CYCLES = 3, 500, 4, 2
MEASURED_S = 24.0
PATIENCE_S = 300.0
PIPELINES = ROOT / "deploy" / "shapes" / "pipelines"
SETTINGS = {
    "name": RUN,
    # Absolute: nodes of one machine share the job's working directory; one that ends removes it.
    "model.path": PIPELINES / "lcm",
    "model.teacher": PIPELINES / "base",
    "actors.num_cpus": 1,
    "actors.group_size": MEMBERS,
    "actors.groups_per_batch": 1,
    "actors.lease_s": 5,
    "scoring.lease_s": 5,
    # Nothing but samplers books any: how many of them fit is what the nodes have.
    "evaluation.num_cpus": 0,
    "scoring.num_cpus": 0,
    "learner.num_cpus": 0,
    "replay.capacity_groups": PRETRAIN + PER_CYCLE * CYCLES,
    "replay.max_pending_records": 60,
    "replay.max_attempts": 10,
    "method.pretrain.groups": PRETRAIN,
    "method.groups_per_cycle": PER_CYCLE,
    "method.cycles": CYCLES,
    "limits.stall_s": 400,
}


@dataclass(frozen=True)
class Run:
    """A run of waiting samplers that is under way."""

    head: LocalHead
    environ: dict[str, str]
    folder: Path
    job: subprocess.Popen[bytes]
    log: Path
    wait_file: Path

    def fleet(self, *words: str) -> str:
        """What `deploy.fleet` answers."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.fleet", "--run", RUN, *words],
            cwd=ROOT,
            env=self.environ | {"FLEETUNE_RUNS": str(self.folder.parent)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout + done.stderr

    def wait_for(self, look: Callable[[], bool], told: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not look():
            assert time.monotonic() < deadline, told()
            assert self.job.poll() is None, self.log.read_text()
            time.sleep(0.5)

    def wait_for_page(self, *texts: str) -> None:
        pages: list[str] = []

        def look() -> bool:
            pages.append(self.fleet())
            return all(text in pages[-1] for text in texts)

        self.wait_for(look, lambda: pages[-1])

    def rate(self) -> float:
        """Records a second that are committed now."""
        with opened(self.folder, {}) as replay:
            first, begun = replay.counters().committed, time.monotonic()
            time.sleep(MEASURED_S)
            return (replay.counters().committed - first) / (time.monotonic() - begun)

    def decisions(self) -> list[dict[str, object]]:
        file = self.folder / "fleet.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def lost(self) -> list[str]:
        """Reasons of the decisions that replaced samplers which a node took with it."""
        whys = [str(each["why"]) for each in self.decisions() if each["role"] == "samplers"]
        return [why for why in whys if "was lost with its node; it is replaced" in why]


@pytest.fixture
def small_head(environ: dict[str, str], tmp_path: Path) -> Iterator[LocalHead]:
    """A head with nothing to offer for a sampler."""
    waiting = {**environ, WAIT_FILE: str(tmp_path / "wait")}
    with LocalHead(num_cpus=0, environ=waiting) as head:
        assert head.wait_ready(timeout_s=2 * START_S, should_stop=lambda: False)
        yield head


@pytest.fixture
def run(small_head: LocalHead, environ: dict[str, str], tmp_path: Path) -> Iterator[Run]:
    wait_file, log, runs = tmp_path / "wait", tmp_path / "job.log", tmp_path / "runs"
    wait_file.touch()
    settings = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = small_head.submit_command(
        [
            sys.executable,
            *("-m", "waiting_samplers", str(SMOKE)),
            *settings,
        ],
        job=RUN,
        folder=ROOT,
        env_vars={"FLEETUNE_RUNS": str(runs)},
    )
    with log.open("wb") as output:
        job = subprocess.Popen(
            command, env=small_head.client_environ(), stdout=output, stderr=subprocess.STDOUT
        )
    yield Run(small_head, environ, runs / RUN, job, log, wait_file)
    job.kill()
    job.wait()


def test_a_fleet_follows_its_nodes_and_loses_nothing(run: Run, tmp_path: Path) -> None:
    with (
        RayNode(run.head, tmp_path / "first.log", num_cpus=2),
        RayNode(run.head, tmp_path / "third.log", num_cpus=2) as spare,
    ):
        run.wait_for_page("samplers: 1 of 1 at work", "collecting")
        of_one = run.rate()

        run.fleet("scale", "samplers=5")
        run.wait_for_page("samplers: 4 of 5 at work", "placing")
        run.fleet("scale", "samplers=4")
        run.wait_for_page("samplers: 4 of 4 at work")
        of_four = run.rate()
        node_of = {name: actor["node_id"] for name, actor in actors_of(run.head, RUN).items()}
        samplers = Counter(node for name, node in node_of.items() if name.startswith("sampler-"))
        assert sorted(samplers.values()) == [2, 2]
        of_driver = {node_of[name] for name in ("controller", "policy-board", "replay-server")}
        assert of_driver == {living_nodes(run.head)[run.head.node_ip]}

        spare.kill()
        run.wait_for(lambda: len(run.lost()) == 2, lambda: f"{run.decisions()}")
        run.wait_for_page("samplers: 2 of 4 at work", "placing")
        with RayNode(run.head, tmp_path / "fourth.log", num_cpus=2):
            run.wait_for_page("samplers: 4 of 4 at work")
            run.fleet("scale", "samplers=2")
            run.wait_for_page("samplers: 2 of 2 at work")
            of_two = run.rate()
            run.wait_file.unlink()
            assert run.job.wait(900) == 0, run.log.read_text()

    assert 2.4 * of_one < of_four
    assert 1.3 * of_one < of_two < 0.8 * of_four
    made = [(each["from"], each["to"]) for each in run.decisions() if each["role"] == "samplers"]
    assert made == [(1, 5), (5, 4), (4, 4), (4, 4), (4, 2)]
    assert {why.partition(" ")[0] for why in run.lost()} <= {f"sampler-{i}" for i in range(4)}
    assert_whole(run)


def assert_whole(run: Run) -> None:
    """Every record that was issued ended once."""
    records = json.loads((run.folder / "summary.json").read_text())["records"]
    assert records["committed"] == MEMBERS * (PRETRAIN + PER_CYCLE * CYCLES)
    assert (records["failed"], records["pending"], records["open_tickets"]) == (0, 0, 0)
    with opened(run.folder, {}) as replay:
        assert replay.counters().issued_records == records["committed"]
        seen: Counter[str] = Counter()
        position = START
        while entries := replay.tail(position, max_entries=1000):
            position = entries[-1].position
            seen.update(entry.record_id for entry in entries if isinstance(entry, IndexEntry))
    assert (len(seen), set(seen.values())) == (records["committed"], {1})
