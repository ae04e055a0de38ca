"""A reward model on a thread of its own, with a deadline for every batch.

A thread cannot be ended from outside: one that missed its deadline is abandoned with its model
call, and its late result is dropped. Too many that never came back make a server useless, and
`check` says so. Threads are daemons, so a stalled model does not keep its process alive.
"""

import queue
import threading
import time
from collections.abc import Sequence

import numpy as np

from reward_servers.base import Failure, Outcome, RewardModel, checked_scores, reason_of

_MAX_STALLED = 3  # abandoned threads hold memory, and often the accelerator


class StalledError(RuntimeError):
    """Calls of a reward model never returned; only a new process helps."""


class PendingScores:
    """The scores of a batch that is being scored."""

    def __init__(self, images_BHWC: np.ndarray, prompts: Sequence[str], timeout_s: float) -> None:
        self.images_BHWC = images_BHWC
        self.prompts = prompts
        self.outcomes: list[Outcome] = []
        self.began = time.monotonic()
        self.took_s = timeout_s  # until it is done
        self.done = threading.Event()
        self._timeout_s = timeout_s
        self._deadline = self.began + timeout_s

    def wait(self) -> list[Outcome]:
        """One outcome a row; all of them failures when the deadline has passed."""
        if self.done.wait(max(0.0, self._deadline - time.monotonic())):
            return self.outcomes
        return [Failure(f"timed out after {self._timeout_s:g} s")] * len(self.prompts)


class TimedReward:
    """Scores batches with a model, one at a time, each within `timeout_s`.

    The model runs on one thread, always the same until it misses a deadline.
    """

    def __init__(self, name: str, model: RewardModel, *, timeout_s: float) -> None:
        self.name = name
        self._model = model
        self._timeout_s = timeout_s
        self._inbox: queue.SimpleQueue[PendingScores | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._abandoned: list[threading.Thread] = []

    def check(self) -> None:
        """Nothing, unless too many calls are stuck.

        Raises:
            StalledError: they are.
        """
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) >= _MAX_STALLED:
            raise StalledError(
                f"{len(self._abandoned)} calls of reward {self.name!r} have not returned, "
                f"each given {self._timeout_s:g} s; raise timeout_s or mend the reward"
            )

    def submit(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> PendingScores:
        """Start scoring a batch; hand what this returns to `collect` before the next one."""
        if self._thread is None:
            self._inbox = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=_serve, args=(self._model, self._inbox), name=self.name, daemon=True
            )
            self._thread.start()
        pending = PendingScores(images_BHWC, prompts, self._timeout_s)
        self._inbox.put(pending)
        return pending

    def collect(self, pending: PendingScores) -> list[Outcome]:
        """Wait for the outcomes of a batch, until its deadline."""
        outcomes = pending.wait()
        if not pending.done.is_set() and self._thread is not None:
            self._abandoned.append(self._thread)
            self.close()
        return outcomes

    def close(self) -> None:
        """End the thread after the call it is in, if any."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread = None


def score_all(
    reward: TimedReward,
    images_BHWC: np.ndarray,
    prompts: Sequence[str],
    *,
    batch: int,
    attempts: int,
) -> list[Outcome]:
    """One outcome a row, however many rows: for whoever has no queue to give failures back to.

    A batch that failed as a whole, such as by its deadline, is tried again. Never waits for longer
    than a few deadlines: once too many calls are stuck, what is left fails at once.
    """
    outcomes: list[Outcome] = []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        found: list[Outcome] = []
        for _ in range(attempts):
            found = _attempt(reward, images_BHWC[rows], prompts[rows])
            if not all(isinstance(outcome, Failure) for outcome in found):
                break
        outcomes += found
    return outcomes


def _attempt(reward: TimedReward, images_BHWC: np.ndarray, prompts: Sequence[str]) -> list[Outcome]:
    try:
        reward.check()
    except StalledError as error:
        return [Failure(str(error))] * len(prompts)
    return reward.collect(reward.submit(images_BHWC, prompts))


def _serve(model: RewardModel, inbox: "queue.SimpleQueue[PendingScores | None]") -> None:
    while (pending := inbox.get()) is not None:
        try:
            pending.outcomes = checked_scores(model, pending.images_BHWC, pending.prompts)
        except Exception as error:  # noqa: BLE001  a dead thread would look like a stall
            pending.outcomes = [Failure(reason_of(error))] * len(pending.prompts)
        pending.took_s = time.monotonic() - pending.began
        pending.done.set()
