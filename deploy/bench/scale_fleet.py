"""What a run's driver spends on looking after its fleet, by the number of actors.

Actors that do nothing but answer, under a local Ray of its own; the driver looks at them twice a
second, as `deploy.run.supervise` does. Counted is all processor time of this process, Ray's own
threads included.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
import ray

from actors.fleet import Fleet
from deploy.bench.timing import Row, spread
from deploy.fleet.desk import FleetDesk
from deploy.fleet.fleets import Fleets
from deploy.local_head import LocalHead

LOOK_EVERY_S = 0.5
_BUILT_S = 400.0


class Idle:
    """A worker that counts its answers."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._stopping = Event()
        self._answers = 0

    def run(self) -> None:
        """Until `stop`."""
        self._stopping.wait()

    def stop(self) -> None:
        """End `run`."""
        self._stopping.set()

    def stats(self) -> dict[str, float | str]:
        """What a sampler would tell."""
        self._answers += 1
        return {"owner": self._owner, "images": self._answers, "wait_s": 1.0, "sample_s": 2.0}


def look_costs(sizes: Sequence[int], *, looks: int) -> Iterator[tuple[int, Row]]:
    """Milliseconds of processor time that one look costs, for fleets of each size, growing."""
    with _ray(), tempfile.TemporaryDirectory(prefix="fleetune-bench-") as folder:
        desk = ray.remote(FleetDesk).options(num_cpus=0).remote()
        fleet = Fleet(Idle, name="sampler", actor_options={"num_cpus": 0})
        fleets = Fleets({"samplers": fleet}, desk=desk, folder=Path(folder))
        fleets.start({"samplers": sizes[0]})
        try:
            for size in sizes:
                fleets.scale("samplers", size, "to measure")
                _wait_until_built(fleets, size)
                costs_ms = [_look_ms(fleets) for _ in range(looks)]
                yield (
                    size,
                    Row("a driver's look", f"{size} actors", "ms CPU", spread(costs_ms), None),
                )
        finally:
            fleet.stop()


def by_actor_ms(cost_ms_of_size: dict[int, float]) -> tuple[float, float]:
    """What an actor adds to a look, and what a look costs without any."""
    slope, constant = np.polyfit(list(cost_ms_of_size), list(cost_ms_of_size.values()), 1)
    return float(slope), float(constant)


def _look_ms(fleets: Fleets) -> float:
    begun = time.process_time()
    fleets.look({})
    time.sleep(LOOK_EVERY_S)
    return 1000 * (time.process_time() - begun)


def _wait_until_built(fleets: Fleets, size: int) -> None:
    deadline = time.monotonic() + _BUILT_S
    while len(fleets.stats()) < size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{size} actors were not built within {_BUILT_S:.0f} s")
        fleets.look({})
        time.sleep(LOOK_EVERY_S)


@contextmanager
def _ray() -> Iterator[None]:
    with LocalHead(num_cpus=1, environ=os.environ) as head:
        head.wait_ready(timeout_s=_BUILT_S, should_stop=lambda: False)
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(
            address=head.address,
            _node_ip_address=head.node_ip,
            namespace="scale",
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
        try:
            yield
        finally:
            ray.shutdown()
