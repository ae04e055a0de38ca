"""`python -m deploy.fleet.leave`: this node is about to go, and its workers leave it in order.

    python -m deploy.fleet.leave --within 90

For a pod's preStop hook, or by hand before a machine is taken away. Ray is told to place nothing
here any more; then every sampler and reward server of this node, of whatever run, finishes its
batch and gives its leases back. Their fleets replace them on other nodes. Who has not left within
that time loses no more than a batch, which is made again when its lease has run out. Learner ranks
stay: they go on from a checkpoint.

Who works here is asked of Ray's dashboard, so this node must reach its port on the head, 8265.

Exit status: 0 all have left, 1 some have not, or Ray does not answer.
"""

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_HOSTS = frozenset({"WorkerHost", "RewardHost"})
"""The actors' classes of samplers and reward servers, and of a reward's own fleet."""
_DRAIN_TIMEOUT_S = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0: all have left, 1: some have not, or Ray does not answer."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    options = _options(arguments)
    import ray

    try:
        ray.init(
            address=options.address,
            _node_ip_address=options.node_ip,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        left = leave(within_s=options.within)
    except (ConnectionError, RuntimeError) as error:
        log.error("Ray does not answer, so nobody here can be asked to leave: %s", error)
        return 1
    ray.shutdown()
    return 0 if left else 1


def leave(*, within_s: float) -> bool:
    """Ends the workers of the node that this process has joined; True: all within that time."""
    import ray

    deadline = time.monotonic() + within_s
    context = ray.get_runtime_context()
    node = context.get_node_id()
    _place_nothing_more(node, context.gcs_address, within_s)
    asked: set[str] = set()
    # A worker that was just being placed when Ray was told comes up all the same.
    while workers := _workers_of(node):
        for worker in workers:
            if worker.actor_id not in asked:
                asked.add(worker.actor_id)
                _ask_to_stop(worker)
        if time.monotonic() > deadline:
            names = ", ".join(sorted(worker.name for worker in workers))
            log.warning("not left within %g s: %s", within_s, names)
            return False
        time.sleep(_LOOK_EVERY_S)
    log.info("%d workers have left", len(asked))
    return True


def _workers_of(node: str) -> list[Any]:
    """Samplers and reward servers that live on a node.

    Raises:
        RuntimeError: the dashboard, which alone knows that, does not answer.
    """
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    filters: list[Any] = [
        ("node_id", "=", node),
        ("state", "=", "ALIVE"),
    ]
    try:
        actors: list[Any] = list_actors(filters=filters, limit=1000)
    except RayStateApiException as error:
        raise RuntimeError(
            "its dashboard does not tell who works on this node; let this node reach port 8265 of "
            "the head (the dashboard's, --dashboard-port), with the RAY_AUTH_MODE and "
            "RAY_AUTH_TOKEN of `ray start`, and call this again. Ray was told already to place "
            "nothing here; if the node goes now, its batches are made again when their leases have "
            f"run out. {error}"
        ) from error
    return [each for each in actors if each.class_name in _HOSTS]


def _ask_to_stop(worker: Any) -> None:
    import ray

    try:
        ray.get_actor(worker.name, namespace=worker.ray_namespace).stop.remote()
    except ValueError:
        log.info("%s has ended meanwhile", worker.name)
    else:
        log.info("%s is asked to leave", worker.name)


def _place_nothing_more(node: str, address: str, within_s: float) -> None:
    """Ray's own command, as there is no public function; without it workers may come back here."""
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "drain-node",
        f"--address={address}",
        f"--node-id={node}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=the node is about to go",
        f"--deadline-remaining-seconds={max(1, round(within_s))}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DRAIN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        log.warning("Ray was not told within %g s to place nothing here", _DRAIN_TIMEOUT_S)
        return
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:]
        log.warning("Ray may place workers here again: %s", " ".join(told))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.fleet.leave",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--within", type=float, default=90.0, metavar="S", help="seconds")
    parser.add_argument("--address", default="auto", help="of the cluster, where it is not found")
    parser.add_argument("--node-ip", help="of the node, where several are on one machine")
    options = parser.parse_args(arguments)
    if options.within <= 0:
        parser.error(f"--within is the time to leave in seconds, above 0, given {options.within:g}")
    return options


if __name__ == "__main__":
    sys.exit(main())
