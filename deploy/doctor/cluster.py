"""What each node of a Ray cluster is like, and whether it suits a config.

Every node is asked by a task of its own: versions, GPUs, whether it sees what another has written
into the folder of the runs and the files that the config names, and what time it has. What is told
from the answers is pure.
"""

import logging
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.doctor.files import missing_files, named_files
from deploy.doctor.gpu_memory import smallest_gpu_bytes
from deploy.doctor.main_memory import main_memory_bytes
from deploy.run.bookings import Room, booking_findings, bookings
from deploy.run.replay_servers import out_of_reach
from deploy.settings.run_config import RunConfig

PACKAGES = ("fleetune", "torch", "ray", "diffusers", "transformers", "deepspeed")
_MOST_SKEW_S = 2.0
_PROBE = ".fleetune-probe-"
_ANSWER_S = 120.0


@dataclass(frozen=True)
class NodeFacts:
    """What one node has answered.

    Args:
        cpus, gpus: by Ray's count.
        host: name of its machine, by Ray.
        gpu_bytes: memory of the smallest GPU that torch can use; 0: of none.
        memory_bytes: main memory of it or of its container; 0: not known.
        torch_gpus: those that torch can use, whatever Ray counts.
        missing: paths of asked files that are not there.
        sees_folder: reads what the asking node has written, and the other way round.
        skew_s: how far its clock is ahead, at least; negative: behind.
    """

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    torch_gpus: int = 0
    sees_folder: bool = True
    skew_s: float = 0.0
    host: str = ""
    gpu_bytes: int = 0
    memory_bytes: int = 0
    missing: Sequence[str] = ()
    error: str = ""

    @property
    def room(self) -> Room:
        """What there is to book."""
        return Room(
            self.name,
            self.cpus,
            self.gpus,
            self.labels,
            self.host,
            self.gpu_bytes,
            self.memory_bytes,
        )


def cluster_findings(
    config: RunConfig, nodes: Sequence[NodeFacts], here: Mapping[str, str], folder: Path
) -> Iterator[str]:
    """What is wrong with nodes, one by one and together.

    Args:
        here: versions of the asking node, by package.
        folder: of the runs.
    """
    files = named_files(config)
    for node in nodes:
        yield from _node_findings(node, here, folder)
        yield from missing_files(config, files, node.missing, node.room)
    rooms = [node.room for node in nodes if not node.error]
    yield from booking_findings(bookings(config), rooms)


def _node_findings(node: NodeFacts, here: Mapping[str, str], folder: Path) -> Iterator[str]:
    if node.error:
        yield f"node {node.name} does not answer: {node.error}; see its logs, or take it out"
        return
    for package, version in here.items():
        if (there := node.versions.get(package, "none")) != version:
            yield (
                f"node {node.name} has {package} {there}, and the head {version}: give all nodes "
                "one image, or pip install -c constraints.txt -e . on each"
            )
    if node.gpus > node.torch_gpus:
        yield (
            f"node {node.name} has {node.gpus:g} GPUs by Ray's count, and torch can use "
            f"{node.torch_gpus}: install a build of torch for them, see the driver by nvidia-smi, "
            "or start the node with so many --num-gpus"
        )
    if not node.sees_folder:
        yield (
            f"node {node.name} does not share {folder} with the head: mount one file system there "
            "on all nodes, writable, and name a folder on it by FLEETUNE_RUNS"
        )
    if abs(node.skew_s) > _MOST_SKEW_S:
        way = "ahead of" if node.skew_s > 0 else "behind"
        yield (
            f"the clock of node {node.name} is {abs(node.skew_s):.1f} s {way} the head's, so times "
            "in logs and curves do not compare: run chrony or systemd-timesyncd on it"
        )


def look_at_cluster(
    config: RunConfig, environ: Mapping[str, str], address: str
) -> tuple[list[str], list[Room]]:
    """Asks all nodes of the cluster at an address; what is wrong, and what there is to book.

    Raises:
        ValueError: there is no cluster.
    """
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise ValueError(
            f"there is no Ray cluster at {address!r}: call this by `ray job submit --working-dir . "
            "-- python -m deploy.doctor --cluster CONFIG`, or on the head, or give --address"
        ) from error
    folder = config.run_folder(environ).parent.absolute()
    try:
        nodes = _ask_nodes(ray, folder, sorted(set(named_files(config).values())))
        rooms = [node.room for node in nodes]
        far = out_of_reach(config, environ, rooms, _head_host(ray))
        found = [*cluster_findings(config, nodes, versions_here(), folder), *filter(None, [far])]
        return found, rooms
    finally:
        ray.shutdown()


def versions_here() -> dict[str, str]:
    """Of Python and of the packages that nodes must agree on."""
    import importlib.metadata
    import platform

    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _head_host(ray: Any) -> str:
    """Where the driver of a job is; this machine if Ray does not say."""
    heads = [node for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
    return heads[0]["NodeManagerHostname"] if heads else socket.gethostname()


def answer(folder: str, token: str, name: str, files: Sequence[str]) -> dict[str, Any]:
    """Runs on a node: what it is, which files it lacks, and a file for the head to find."""
    import torch

    shared = Path(folder)
    try:
        sees = (shared / f"{_PROBE}{token}").read_text() == token
        (shared / f"{_PROBE}{token}-{name}").write_text(token)
    except OSError:
        sees = False
    return {
        "versions": versions_here(),
        "torch_gpus": torch.cuda.device_count(),
        "gpu_bytes": smallest_gpu_bytes(),
        "memory_bytes": main_memory_bytes(),
        "missing": [path for path in files if not Path(path).exists()],
        "sees_folder": sees,
    }


def _ask_nodes(ray: Any, folder: Path, files: Sequence[str]) -> list[NodeFacts]:
    """Facts of every living node, in the order of their names.

    Raises:
        ValueError: the head cannot write the folder.
    """
    token = secrets.token_hex(8)
    nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: n["NodeName"])
    probe = folder / f"{_PROBE}{token}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text(token)
    except OSError as error:
        raise ValueError(
            f"the head cannot write {folder}: {error}; mount the shared folder there, or name "
            "another by folder=... or FLEETUNE_RUNS"
        ) from error
    try:
        return [_ask(ray, node, folder, token, files) for node in nodes]
    finally:
        for left in folder.glob(f"{probe.name}*"):
            left.unlink(missing_ok=True)


def _ask(
    ray: Any, node: Mapping[str, Any], folder: Path, token: str, files: Sequence[str]
) -> NodeFacts:
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": there, "max_retries": 0}
    known = vars(Room.of(node))
    try:
        # It books no GPU, from which Ray hides none, so that a run beside it is in nobody's way.
        # Its process ends with it, and leaves nothing in a GPU's memory.
        task = ray.remote(max_calls=1)(answer).options(**options)
        told = ray.get(task.remote(str(folder), token, node["NodeID"], files), timeout=_ANSWER_S)
        skew_s = _skew_s(ray, options)
    except RayError as error:
        return NodeFacts(**known, error=str(error).strip().splitlines()[-1])
    seen = told["sees_folder"] and (folder / f"{_PROBE}{token}-{node['NodeID']}").exists()
    return NodeFacts(**{**known, **told, "sees_folder": seen}, skew_s=skew_s)


def _clock() -> float:
    """Runs on a node; Ray takes no built-in."""
    return time.time()


def _skew_s(ray: Any, options: Mapping[str, Any]) -> float:
    """How far a node's clock is off, less what the way there and back may explain."""
    clock = ray.remote(_clock).options(**options)
    ray.get(clock.remote(), timeout=_ANSWER_S)  # so that a worker is there
    before = time.time()
    there = ray.get(clock.remote(), timeout=_ANSWER_S)
    after = time.time()
    if before <= there <= after:
        return 0.0
    return there - after if there > after else there - before
