"""What the Ray dashboard tells of a run that is under way."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import ROOT, SMOKE
from tests.e2e.ray_nodes import actors_of
from tests.e2e.test_fleet_scaling import scraped

if TYPE_CHECKING:
    from deploy.local_head import LocalHead

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
RUN = "on-the-dashboard"
FACTS = {"run": RUN, "preset": SMOKE.name, "method": "lasro", "seed": "0"}
ACTORS = {
    "controller",
    "evaluator",
    "learner-0",
    "policy-board",
    "replay-server",
    "reward-0",
    "sampler-0",
    "sampler-1",
}
PATIENCE_S = 300.0
BROWSER = shutil.which("chromium")


@pytest.fixture(scope="module")
def job(
    head: LocalHead,
    runs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """A run that lasts until it is stopped, and has all its actors; the name of its job."""
    small = ["method.cycles=5000", "actors.count=2", "learner.checkpoint_every_cycles=5"]
    command = head.submit_command(
        [
            *(sys.executable, "-m", "deploy.launch", str(SMOKE), f"name={RUN}"),
            *small,
        ],
        job=RUN,
        folder=ROOT,
        env_vars={"FLEETUNE_RUNS": str(runs)},
        metadata=FACTS,
    )
    log = tmp_path_factory.mktemp("job") / "log"
    with log.open("wb") as output:
        client = subprocess.Popen(
            command, env=head.client_environ(), stdout=output, stderr=subprocess.STDOUT
        )
    eventually(lambda: actors_of(head, RUN).keys() >= ACTORS, log.read_text)
    yield RUN
    head.request("POST", f"/api/jobs/{RUN}/stop")
    client.wait(120)


def eventually(look: Callable[[], bool], told: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, told()
        time.sleep(1)


def test_every_actor_has_its_name(head: LocalHead, job: str) -> None:
    assert set(actors_of(head, job)) == ACTORS


def test_what_a_fleet_and_the_learner_log_stands_behind_their_names(
    head: LocalHead, job: str
) -> None:
    named = {name: actor["repr_name"] for name, actor in actors_of(head, job).items()}
    hosts = ("learner-0", "reward-0", "sampler-0", "sampler-1")
    assert {name: named[name] for name in hosts} == {name: name for name in hosts}


def test_a_job_tells_the_facts_of_its_run(head: LocalHead, job: str) -> None:
    metadata: dict[str, Any] = head.request("GET", f"/api/jobs/{job}")["metadata"]
    assert {key: metadata.get(key) for key in FACTS} == FACTS


def test_its_metrics_are_where_the_dashboard_has_prometheus_look(head: LocalHead, job: str) -> None:
    tagged = f'run="{job}"'

    def exported() -> bool:
        lines = scraped(head).splitlines()
        return any(line.startswith("ray_fleetune_records{") and tagged in line for line in lines)

    eventually(exported, lambda: scraped(head)[-3000:])


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
def test_a_browser_shows_the_actors_by_name(head: LocalHead, job: str, tmp_path: Path) -> None:
    page = rendered(f"{head.url}/#/actors", tmp_path)
    assert [name for name in ("learner-0", "reward-0", "sampler-0") if name not in page] == []


def rendered(url: str, profile: Path) -> str:
    """The document that a browser made of a page."""
    assert BROWSER is not None
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={profile}",
        *("--window-size=1400,900", "--virtual-time-budget=20000", "--dump-dom"),
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
