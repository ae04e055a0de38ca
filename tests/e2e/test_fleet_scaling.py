"""`deploy.fleet` on a run that is under way: it grows, shrinks, and its ledger stays whole."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.run.metrics import ALL, REWARD_FAILURES, WORKER_FAILURES
from tests.e2e.conftest import ROOT

if TYPE_CHECKING:
    from deploy.local_head import LocalHead
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
RUN = "scaled"
CYCLES = 40


def fleet(environ: dict[str, str], runs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.fleet", "--run", RUN, *words],
        cwd=ROOT,
        env={**environ, "FLEETUNE_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def scraped(head: LocalHead) -> str:
    """What Prometheus would read of the head, at the targets that Ray tells it."""
    targets: Any = head.request("GET", "/api/prometheus/sd")
    texts = []
    for address in {address for group in targets for address in group["targets"]}:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            texts.append(answer.read().decode())
    return "".join(texts)


def wait_for(text: str, look: Callable[[], str], run: Future[Ended]) -> None:
    deadline = time.monotonic() + 180
    while text not in (seen := look()):
        assert time.monotonic() < deadline, seen
        assert not run.done(), run.result().output
        time.sleep(0.5)


def test_a_fleet_grows_and_shrinks_under_way_and_loses_nothing(
    run_job: Callable[..., Ended], environ: dict[str, str], runs: Path, head: LocalHead
) -> None:
    def page() -> str:
        return fleet(environ, runs).stdout

    # A counter that never counted is not exported; of a histogram, its parts are.
    silent = (WORKER_FAILURES, REWARD_FAILURES)
    expected = [f"{m.name}_count" if m.bounds else m.name for m in ALL if m not in silent]

    def missing() -> str:
        text = scraped(head)
        return f"missing: {[name for name in expected if f'ray_{name}{{' not in text]}"

    # Each batch takes a moment, so that the run lasts longer than what is done to it.
    slow = "rewards.binding.kind=e2e_rewards:SlowBrightness"
    small = [f"method.cycles={CYCLES}", "actors.num_cpus=0.1", "scoring.num_cpus=0.1"]
    with ThreadPoolExecutor(1) as pool:
        own = "rewards.binding.fleet={servers: 1, num_cpus: 0.1}"
        run = pool.submit(run_job, RUN, *small, slow, own, "learner.num_cpus=0.1")
        wait_for("samplers: 1 of 1 at work", page, run)
        grown = fleet(environ, runs, "scale", "samplers=3", "rewards=2", "rewards.binding=2")
        assert grown.returncode == 0, grown.stderr
        assert "samplers 1 -> 3" in grown.stdout
        wait_for("samplers: 3 of 3 at work", page, run)
        wait_for("rewards: 2 of 2 at work", page, run)
        wait_for("rewards.binding: 2 of 2 at work", page, run)
        wait_for("missing: []", missing, run)
        shrunk = fleet(environ, runs, "scale", "samplers=1")
        assert shrunk.returncode == 0, shrunk.stderr
        wait_for("samplers: 1 of 1 at work", page, run)
        ended = run.result()
    assert ended.status == 0, ended.output
    records = ended.summary["records"]
    # 8 groups before the first cycle and 4 in each, 3 trajectories each.
    assert records["committed"] == 3 * (8 + 4 * CYCLES)
    assert (records["failed"], records["pending"], records["open_tickets"]) == (0, 0, 0)
    decisions = (ended.folder / "fleet.jsonl").read_text().splitlines()
    made = [(d["role"], d["from"], d["to"]) for d in map(json.loads, decisions)]
    grown_to = [("samplers", 1, 3), ("rewards", 1, 2), ("rewards.binding", 1, 2)]
    assert made == [*grown_to, ("samplers", 3, 1)]
    gone = fleet(environ, runs)
    assert gone.returncode == 2
    assert "no run named 'scaled' is under way" in gone.stderr
