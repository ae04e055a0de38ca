"""A node that is about to go, on a real cluster: its workers finish, and come up elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.host import WorkerHost
from deploy.local_head import LocalHead
from tests.e2e.ray_nodes import RayNode, actors_of
from tests.services.fleet_world import Waiting

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[LocalHead]:
    with LocalHead(num_cpus=2, environ={"PATH": "/usr/bin:/bin"}) as running:
        running.wait_ready(timeout_s=300, should_stop=lambda: False)
        yield running


def test_workers_of_a_leaving_node_finish_and_ray_places_none_there(
    head: LocalHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = head.client_environ()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    marks = tmp_path / "marks"
    marks.mkdir()
    with RayNode(head, tmp_path / "node.log", num_cpus=2) as node:
        ray.init(address=head.address, namespace="leaving", log_to_driver=False)
        try:
            host = ray.remote(WorkerHost)
            there = {"resources": {f"node:{node.address}": 0.001}, "max_concurrency": 3}
            worker = host.options(name="sampler-0", **there).remote(
                lambda owner: Waiting(owner, marks, leaving_s=1.0), "sampler-0.0"
            )
            running = worker.run.remote()
            ray.get(worker.stats.remote(), timeout=120)
            command = [sys.executable, "-m", "deploy.fleet.leave", "--within", "60"]
            command += ["--address", head.address, "--node-ip", node.address]
            leaving = subprocess.Popen(
                command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, text=True
            )
            # It ends when it was asked to, with its work done.
            ray.get(running, timeout=120)
            assert (marks / "sampler-0.0").exists()
            ray.kill(worker)
            told = leaving.communicate(timeout=120)[1]
            assert leaving.returncode == 0, told
            assert "sampler-0 is asked to leave" in told
            late = host.options(name="sampler-1", **there).remote(Waiting, "sampler-1.0")
            asked = late.stats.remote()
            assert ray.wait([asked], timeout=5) == ([], [asked])
            assert "sampler-1" not in actors_of(head, "leaving")
        finally:
            ray.shutdown()
