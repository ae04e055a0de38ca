"""The life of a learner rank: resume, prepare, cycle, publish, checkpoint, stop.

    trainer = Trainer(method, ...); trainer.run()          one a rank, all ranks alike

A method says what a cycle is; the trainer knows no method. Every rank runs the same loop on the
same numbers; rank 0 alone admits tickets, publishes and reports. A stop is heeded with a checkpoint
between two cycles, between two steps of a preparation, and in the middle of a cycle: once its
policy steps are taken, and while it waits for what the new version samples. A wait that nothing
ends leaves a checkpoint too. The run that resumes from the middle of a cycle repeats no step of it.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from learner import checkpoint
from learner.collectives import any_rank, barrier, of_first
from learner.journal import Journal
from learner.policy.board import Weights
from learner.waits import StallError, StoppedError

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
        """The policy's steps of a cycle.

        Raises:
            StoppedError, StallError: in a wait before the first of them.
        """
        ...

    def adapt(self, cycle: int, *, last: bool) -> None:
        """After the new version is published: fresh samples, and what is learned from them.

        Raises:
            StoppedError, StallError: in the wait for samples. `state` and `save` tell the same of
                what has been learned as after `improve`; seconds and the log's position go on.
        """
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
        # Whether the policy steps of that cycle are taken, and the new version is published.
        self._is_midway = False
        # The newest checkpoint, as `_here` was when it was written.
        self._saved: tuple[int, bool] | None = None
        self._saved_at = time.monotonic()
        self.published = -1

    def run(self) -> bool:
        """Trains to the end; False: stopped before it, with all that it has done in a checkpoint.

        Raises:
            StallError: nothing came in time, or the replay has failed; what was done until then is
                in a checkpoint.
        """
        method, journal = self._method, self._method.journal
        self._restore()
        self._publish_version(sum(self._here))
        try:
            if not method.prepared:
                method.prepare(self._breathe)
                self._checkpoint()
            # A method may end sooner than it set out to.
            while self._next_cycle < method.cycles:
                self._train_cycle(self._next_cycle)
        except StoppedError:
            self._save_midway()
            journal.enter("stopped")
            log.info("stopped; %s", self._in_words())
            return False
        except StallError:
            self._save_midway()
            log.info("stalled; %s", self._in_words())
            raise
        journal.cycle = method.cycles
        journal.enter("done")
        self._publish_final()
        return True

    def _train_cycle(self, cycle: int) -> None:
        """All of a cycle, or what is left of one that was stopped midway."""
        method, last = self._method, cycle + 1 == self._method.cycles
        if not self._is_midway:
            method.journal.begin(cycle)
            self._heed_stop()
            method.improve(cycle)
            self._is_midway = True
            self._publish_version(cycle + 1)
        if not last:  # the last one has nothing left to wait for
            self._heed_stop()
        method.adapt(cycle, last=last)
        self._next_cycle, self._is_midway = cycle + 1, False
        if self._next_cycle % self._every == 0 or self._next_cycle == method.cycles:
            self._checkpoint()

    @property
    def _here(self) -> tuple[int, bool]:
        """How many cycles are behind it, and whether the policy steps of one more are."""
        return self._next_cycle, self._is_midway

    def _heed_stop(self) -> None:
        """Between two parts of training.

        Raises:
            StoppedError: a stop is asked for; there is a checkpoint of what has been done.
        """
        if any_rank(self._stopping.is_set()):
            if self._saved != self._here:
                self._checkpoint()
            raise StoppedError("stopped between two parts of training")

    def _save_midway(self) -> None:
        """After a wait that was cut short; before policy steps nothing of a cycle can be lost."""
        if self._is_midway and self._saved != self._here:
            self._checkpoint()

    def _in_words(self) -> str:
        """Where a run that resumes goes on."""
        if self._saved is None:
            return "there is no checkpoint yet: resume begins anew, with the samples that are there"
        cycles, is_midway = self._saved
        after = f", and after the policy steps of cycle {cycles}" if is_midway else ""
        return f"resume continues after {cycles} whole cycles{after}"

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
        if (found := self._newest()) is None:
            return
        state = checkpoint.read_state(found)
        self._method.load(found, state["method"])
        self._next_cycle, told = state["next_cycle"], state.get("midway")
        if told is not None:
            self._is_midway = True
            self._method.journal.go_on(self._next_cycle, told)
        self._saved = self._here
        log.info("resumed from %s: %s", found, self._in_words())

    def _newest(self) -> Path | None:
        """The checkpoint that rank 0 goes on from: what another one sees of a file system that it
        shares may be older, and nobody would notice ranks that began from different ones.

        Raises:
            ValueError: it is not there on this rank.
        """
        if not self._resume:
            return None
        newest = checkpoint.newest(self._folder) if self._rank == 0 else None
        cycles, is_midway = (-1, False) if newest is None else checkpoint.place_of(newest)
        cycles, is_midway = of_first(cycles), bool(of_first(int(is_midway)))
        if cycles < 0:
            return None
        try:
            return checkpoint.at(self._folder, cycles, midway=is_midway)
        except ValueError as error:
            raise ValueError(
                f"on rank {self._rank}, {error}, from which rank 0 resumes: the run's folder must "
                "be on a file system that all nodes share"
            ) from error

    def _checkpoint(self) -> None:
        method = self._method
        # `midway` is there in the middle of a cycle alone, with what was told of its policy steps.
        midway = {"midway": method.journal.cycle_rows} if self._is_midway else {}
        with method.journal.timed("checkpoint"), self._writing():
            checkpoint.write(
                self._folder,
                self._next_cycle,
                {"next_cycle": self._next_cycle, **midway, "method": method.state()},
                self._save_part,
                midway=self._is_midway,
                rank=self._rank,
                barrier=barrier,
                keep=self._keep,
            )
        self._saved = self._here
        self._saved_at = time.monotonic()

    def _save_part(self, folder: Path) -> None:
        """This rank's share of a checkpoint.

        torch tells of a full disk by a RuntimeError; one between shares is of a rank that was lost.
        """
        try:
            self._method.save(folder)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Names the checkpoint in an error of the block, and removes the partial one.

        Of a full disk the system names no file, and the run's summary needs the room.
        """
        try:
            yield
        except OSError as error:
            if self._rank == 0:
                for left in (self._folder / "checkpoints").glob("*.partial"):
                    shutil.rmtree(left, ignore_errors=True)
            cause = error.__cause__ if isinstance(error.__cause__, RuntimeError) else error
            reason = str(cause).partition("\n")[0]
            raise OSError(
                f"a checkpoint cannot be written to {self._folder / 'checkpoints'}: "
                f"{type(cause).__name__}: {reason}; {self._in_words()}"
            ) from cause

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
