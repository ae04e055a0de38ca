"""The life of a learner rank: resume, prepare, cycle, publish, checkpoint, stop.

    trainer = Trainer(method, ...); trainer.run()          one a rank, all ranks alike

A method says what a cycle is; the trainer knows no method. Every rank runs the same loop on the
same numbers; rank 0 alone admits tickets, publishes and reports. A stop is heeded between two
cycles, and between two steps of a preparation, with a checkpoint; a wait for samples that outlasts
its grace is cut short, and redone by the run that resumes.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from learner import checkpoint
from learner.collectives import any_rank, barrier
from learner.groups import StoppedError
from learner.journal import Journal
from learner.policy.board import Weights

log = logging.getLogger(__name__)
_PREPARE_EVERY_S = 600.0
"""Between two checkpoints of a long preparation."""


class Method(Protocol):
    """What the trainer asks of a method. All ranks call everything in the same order."""

    cycles: int
    journal: Journal
    prepared: bool

    def prepare(self, breathe: Callable[[], None]) -> None:
        """Everything before the first cycle, such as fitting a surrogate.

        Args:
            breathe: to be called now and then, where `state` and `save` tell how far it has come:
                a prepared method that is loaded from there goes on from there.
        """
        ...

    def improve(self, cycle: int) -> None:
        """The policy's steps of a cycle."""
        ...

    def adapt(self, cycle: int, *, last: bool) -> None:
        """After the new version is published: fresh samples, and what is learned from them."""
        ...

    def weights(self) -> Weights:
        """The policy to sample from."""
        ...

    def final_weights(self) -> Weights:
        """The policy to keep."""
        ...

    def save(self, folder: Path) -> None:
        """This rank's share of a checkpoint."""
        ...

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Restores `save` and `state`."""
        ...

    def state(self) -> dict[str, Any]:
        """What fits JSON: counters, scales, log position."""
        ...


class Trainer:
    """Runs a method on one rank.

    Args:
        publish: makes a policy version known to samplers; called on rank 0 only.
        folder: of the run; holds `checkpoints/`.
        resume: continue from the newest checkpoint in `folder`, if there is one.
        every: cycles between checkpoints.
    """

    def __init__(
        self,
        method: Method,
        publish: Callable[[int, Weights], None],
        *,
        folder: Path,
        rank: int,
        resume: bool,
        every: int,
        keep: int,
        stopping: threading.Event,
    ) -> None:
        self._method = method
        self._publish = publish
        self._folder = folder
        self._rank = rank
        self._resume = resume
        self._every = every
        self._keep = keep
        self._stopping = stopping
        self._next_cycle = 0
        self._saved_at = time.monotonic()
        self.published = -1

    def run(self) -> bool:
        """Trains to the end; False: stopped before it, with a checkpoint."""
        method, journal = self._method, self._method.journal
        self._restore()
        self._publish_version(self._next_cycle)
        try:
            if not method.prepared:
                method.prepare(self._breathe)
                self._checkpoint()
            # A method may end sooner than it set out to.
            while (cycle := self._next_cycle) < method.cycles:
                journal.cycle = cycle
                if any_rank(self._stopping.is_set()):
                    self._checkpoint()
                    return self._stopped()
                method.improve(cycle)
                self._publish_version(cycle + 1)
                method.adapt(cycle, last=cycle + 1 == method.cycles)
                self._next_cycle = cycle + 1
                if self._next_cycle % self._every == 0 or self._next_cycle == method.cycles:
                    self._checkpoint()
        except StoppedError:
            return self._stopped()
        journal.cycle = method.cycles
        journal.enter("done")
        self._publish_final()
        return True

    def _stopped(self) -> bool:
        self._method.journal.enter("stopped")
        log.info("stopped after cycle %d; resume continues there", self._next_cycle)
        return False

    def _breathe(self) -> None:
        """In a long preparation: a checkpoint now and then, and the end where that is asked.

        Raises:
            StoppedError: it is asked.
        """
        stop = any_rank(self._stopping.is_set())
        if stop or any_rank(time.monotonic() - self._saved_at > _PREPARE_EVERY_S):
            self._checkpoint()
        if stop:
            raise StoppedError("stopped while preparing")

    def _restore(self) -> None:
        found = checkpoint.newest(self._folder) if self._resume else None
        if found is None:
            return
        state = checkpoint.read_state(found)
        self._method.load(found, state["method"])
        self._next_cycle = state["next_cycle"]
        log.info("resumed from %s: next cycle is %d", found, self._next_cycle)

    def _checkpoint(self) -> None:
        with self._method.journal.timed("checkpoint"):
            checkpoint.write(
                self._folder,
                self._next_cycle,
                {"next_cycle": self._next_cycle, "method": self._method.state()},
                self._method.save,
                rank=self._rank,
                barrier=barrier,
                keep=self._keep,
            )
        self._saved_at = time.monotonic()

    def _publish_version(self, version: int) -> None:
        if self._rank == 0:
            with self._method.journal.timed("publish"):
                self._publish(version, self._method.weights())
        self.published = version

    def _publish_final(self) -> None:
        """The weights to keep, as one more version."""
        if self._rank == 0:
            self._publish(self.published + 1, self._method.final_weights())
        self.published += 1
