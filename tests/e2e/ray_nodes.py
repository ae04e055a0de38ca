"""Further Ray nodes on this machine, each with a loopback address of its own."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from deploy.local_head import LocalHead, end_process, free_ports, loopback_address, start_child

_JOINED_S = 300.0
# Ray gives the processes of a node a quarter of a minute to come up, which a busy machine may not
# keep, and tells it late.
_AGAIN_S = 60.0


class RayNode:
    """A `ray start --address` child process of a head's cluster.

    with RayNode(head, log, num_cpus=2) as node:
        node.kill()
    """

    def __init__(self, head: LocalHead, log: Path, *, num_cpus: int) -> None:
        self._head = head
        self._log = log
        self._num_cpus = num_cpus
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> "RayNode":
        deadline, started_at = time.monotonic() + _JOINED_S, -_AGAIN_S
        while self.address not in living_nodes(self._head):
            if time.monotonic() - started_at > _AGAIN_S:
                self.__exit__()
                self._start()
                started_at = time.monotonic()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.5)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            family = self._family()
            end_process(self._process, timeout_s=20)
            _kill(family)

    def kill(self) -> None:
        """Ends the node and all that runs on it, at once and without a word, as a lost machine."""
        _kill(self._family())

    def _start(self) -> None:
        taken = living_nodes(self._head)
        while self.address in {"", *taken}:
            self.address = loopback_address()
        agent, grpc, env_agent, metrics = free_ports(4)
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
            "--disable-usage-stats",
            f"--address={self._head.address}",
            f"--node-ip-address={self.address}",
            f"--num-cpus={self._num_cpus}",
            f"--object-store-memory={10**8}",
            f"--dashboard-agent-listen-port={agent}",
            f"--dashboard-agent-grpc-port={grpc}",
            f"--runtime-env-agent-port={env_agent}",
            f"--metrics-export-port={metrics}",
            "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        with self._log.open("wb") as output:
            self._process = start_child(command, environ=self._head.client_environ(), stdout=output)

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        return []


def living_nodes(head: LocalHead) -> dict[str, str]:
    """Address -> id, of the nodes that Ray believes to be alive."""
    answer = head.request("GET", "/api/v0/nodes?limit=1000", timeout_s=60)
    nodes: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return {node["node_ip"]: node["node_id"] for node in nodes if node["state"] == "ALIVE"}


def actors_of(head: LocalHead, run: str) -> dict[str, dict[str, Any]]:
    """Name -> what Ray knows of it, of a run's living actors."""
    answer = head.request("GET", "/api/v0/actors?limit=1000&detail=true", timeout_s=60)
    return {
        actor["name"]: actor
        for actor in answer["data"]["result"]["result"]
        if actor["ray_namespace"] == run and actor["state"] == "ALIVE" and actor["name"]
    }


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)
