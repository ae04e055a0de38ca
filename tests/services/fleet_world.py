"""A local Ray, and workers that only wait, for tests of fleets."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
import ray

from actors.fleet import FleetSettings

FAST = FleetSettings(backoff_s=0.1, max_failures=1, drain_s=30, stats_timeout_s=30)


class Waiting:
    """A worker that waits to be stopped, and then takes a moment to leave its mark."""

    def __init__(self, owner: str, marks: Path | None = None, leaving_s: float = 0.0) -> None:
        self.owner = owner
        self.marks = marks
        self.leaving_s = leaving_s
        self.stopping = Event()

    def run(self) -> None:
        self.stopping.wait(120)
        time.sleep(self.leaving_s)
        if self.marks is not None:
            (self.marks / self.owner).touch()

    def stop(self) -> None:
        self.stopping.set()

    def stats(self) -> dict[str, float | str]:
        return {"owner": self.owner, "built": 1.0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            namespace="fleet",
            log_to_driver=False,
        )
        yield
        ray.shutdown()


def eventually(condition: Callable[[], bool], look: Callable[[], object]) -> None:
    """Looks until it is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for 60 s"
        look()
        time.sleep(0.05)
