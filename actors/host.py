"""Inside an actor of a fleet: what it hosts, and how that reaches the policy board.

    Fleet ─► WorkerHost [build ─► worker.run] ─► BoardWeights ─► policy board, object store

Nothing here imports torch: the workers do.
"""

from collections.abc import Callable, Mapping
from threading import Event
from typing import Any, ClassVar, Protocol

import ray
from ray.exceptions import GetTimeoutError

from learner.policy.board import Weights


class Worker(Protocol):
    """What an actor hosts, such as a `SamplerWorker`."""

    def run(self) -> None:
        """Work until `stop`; raising means giving up."""
        ...

    def stop(self) -> None:
        """End `run` soon, giving leases back."""
        ...

    def stats(self) -> dict[str, float | str]:
        """Counters since the start."""
        ...


class BoardWeights:
    """The policy board, and the weights that it refers to, as a sampler worker asks for them.

    Args:
        board: handle of the `PolicyBoard` actor.
        timeout_s: of one call, and of fetching a version's weights.
    """

    def __init__(self, board: Any, *, timeout_s: float = 120.0) -> None:
        self._board = board
        self._timeout_s = timeout_s

    def latest(self) -> tuple[int, int]:
        """The newest published version, below 0 while there is none, and its edition."""
        return self._get(self._board.latest.remote(), "the policy board")

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        """The newest version and its weights: read-only views of the object store."""
        version, refs = self._get(self._board.weights.remote(at_least), "the policy board")
        parts = self._get(refs, f"the weights of policy version {version}")
        return version, {name: array for part in parts for name, array in part.items()}

    def _get(self, refs: Any, what: str) -> Any:
        try:
            return ray.get(refs, timeout=self._timeout_s)
        except GetTimeoutError as error:
            raise TimeoutError(f"{what} did not come within {self._timeout_s} s") from error


class WorkerHost:
    """Inside the actor: builds the worker in `run`, so that its errors arrive with a reason.

    Attributes:
        concurrency_groups: threads by group of methods, of those that Ray runs apart from others.
    """

    concurrency_groups: ClassVar[Mapping[str, int]] = {}

    def __init__(self, build: Callable[[str], Worker], owner: str) -> None:
        self._build = build
        self._owner = owner
        self._worker: Worker | None = None
        self._stopping = Event()

    def __repr__(self) -> str:
        """The actor's name: Ray puts it before its lines in logs, and in the dashboard."""
        return self._owner.rpartition(".")[0]

    @property
    def worker(self) -> Worker | None:
        """None while it is being built."""
        return self._worker

    def run(self) -> None:
        """Build the worker and run it until `stop`."""
        self._worker = self._build(self._owner)
        if not self._stopping.is_set():
            self._worker.run()

    def stop(self) -> None:
        """End `run` soon, or before it has begun."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()

    def stats(self) -> dict[str, float | str]:
        """The worker's counters; only its owner while it is being built."""
        return {"owner": self._owner} if self._worker is None else self._worker.stats()
