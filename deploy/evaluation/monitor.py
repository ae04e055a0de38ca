"""Evaluations beside training: over-optimisation is seen while a run goes on, and may end it.

    published versions  0 ── 1 ── 2 ── 3 ── 4 ── 5 ── 6 ── …      by the learner, at its own pace
    measured            0 ─────── 2 ──────────── 5 ─ …            the newest whenever one is due

Nothing waits for the evaluator, and nothing in training depends on it: it reads what is published
anyway. A slow one leaves versions out, and never has more than one to do. One that fails, or takes
longer than its deadline, is told in the log and left out. Only the first evaluation and the last
are needed: they are begun again where a new evaluator had to take the place.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from deploy.evaluation.handle import EvaluatorHandle, FirstEvaluation, Needed
from deploy.evaluation.host import WeightsSource
from deploy.evaluation.kept import read_evaluations, thin_pictures, write_evaluations
from deploy.evaluation.stopping import Measured, best_of, why_stop
from deploy.run.best_effort import BestEffort
from deploy.run.curves import read_points
from deploy.run.files import (
    AFTER,
    EVALUATION_PHASE,
    EVALUATIONS_FILE,
    LAST,
    METRICS_FILE,
    kept_file,
    pictures_file,
)
from deploy.run.folder import RunFolder
from deploy.run.ranks import RunFailedError
from deploy.settings.run_config import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        after: its scores.
        exported: where it lies.
        version: which it is, in words.
    """

    after: dict[str, float]
    exported: str
    version: str


class Monitor:
    """The evaluations of one run, in its driver.

    Args:
        board: handle of the `PolicyBoard`.
        stop: asks the learner to end after the policy's steps in hand.
        resume: an earlier start of the run has noted the first evaluation, if it is there.

    Attributes:
        stopped_early: why the rule ended the run; None: it has not.
    """

    def __init__(
        self,
        config: RunConfig,
        evaluator: EvaluatorHandle,
        folder: RunFolder,
        *,
        board: Any,
        stop: Callable[[], None],
        resume: bool,
    ) -> None:
        self._settings = config.evaluation
        self._cycles = config.method.cycles
        self._evaluator = evaluator
        self._folder = folder.path
        self._board = board
        self._stop = stop
        self._first = FirstEvaluation(evaluator, folder)
        self._measured = read_evaluations(self._folder)
        self._tried = max((each.cycle for each in self._measured), default=0)
        if resume:  # what was measured when an earlier start ended stands in the curves alone
            points = read_points(self._folder / METRICS_FILE)
            self._tried = max(
                [self._tried, *(p.step for p in points if p.phase == EVALUATION_PHASE)]
            )
        self._measuring: Any = None
        self._writing = BestEffort(f"new entries in {EVALUATIONS_FILE}")
        self._rows: list[dict[str, Any]] = []
        self._stop_asked = False
        self._meanwhile: Callable[[], None] = lambda: None
        self.stopped_early: str | None = None
        if self.before:
            if not resume:
                self._row(Measured(0, self.before))
            self._judge()

    @property
    def before(self) -> dict[str, float]:
        """Scores of the untouched policy; empty until they are there."""
        return self._first.metrics

    @property
    def evaluates(self) -> bool:
        """Whether the evaluator is at work."""
        return not self.before or self._measuring is not None

    def look(self, report: Mapping[str, Any]) -> None:
        """Takes what is finished and begins what is due; waits for nobody.

        Args:
            report: the learner's newest.

        Raises:
            RunFailedError: the evaluator finds no place, or has not got the run's folder; the first
                evaluation raised, or its evaluator was lost or late too often.
        """
        self._evaluator.check_placed()
        had_first = bool(self.before)
        self._first.look()
        if not had_first:
            self._take_first()
        elif self._measuring is not None:
            if self._evaluator.is_ready(self._measuring):
                self._take(last_cycle=self._cycles)
            elif self._evaluator.is_late():
                log.warning("training goes on without an evaluation that took too long")
                self._measuring = None
                self._evaluator.replace()
        elif self._is_due(report):
            self._tried = report["published"]
            self._measuring = self._evaluator.measure_newest(
                self._board, self._tried, keep=self._settings.best_by is not None
            )
        if self.stopped_early is not None and not self._stop_asked:
            self._stop_asked = True
            log.info("stopping after the policy's steps in hand: %s", self.stopped_early)
            self._stop()

    def rows(self) -> list[dict[str, Any]]:
        """Points for the curves since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def conclude(
        self, refs: list[Any], cycle: int, meanwhile: Callable[[], None] = lambda: None
    ) -> Result:
        """Waits for what is under way, then exports and measures the version that is kept.

        That is the last one, or the best of all that were evaluated, itself included, by
        `evaluation.best_by`. The last one is written in any case, before it is measured, so that
        an evaluation that fails costs no result.

        Args:
            refs: of the last version's weights.
            cycle: cycles behind it.
            meanwhile: called about once a second; what it raises ends the wait.

        Raises:
            RunFailedError: the first or the last evaluation or an export raised, or its evaluator
                was lost or late too often.
        """
        self._meanwhile = meanwhile
        if not self.before:
            self._first.wait(meanwhile)
            self._take_first()
        if self._measuring is not None:
            self._take(last_cycle=cycle)
        exported, by = self._export(refs), self._settings.best_by
        last = Measured(cycle, self._measure(AFTER if by is None else LAST, refs))
        if cycle not in [each.cycle for each in self._measured]:
            self._row(last)
        if by is None:
            return Result(dict(last.metrics), exported, "last")
        # The weights to keep may be other ones than the last published, such as their average.
        earlier = [each for each in self._at_hand if each.cycle < cycle]
        best = best_of([*earlier, last], self._settings.stop, by)
        if best is None or best is last:
            with BestEffort("pictures of the result"):
                pictures_file(self._folder, LAST).replace(pictures_file(self._folder, AFTER))
            return Result(dict(last.metrics), exported, "last")
        source: WeightsSource = kept_file(self._folder, best.cycle) if best.cycle else []
        exported = self._export(source)
        return Result(self._measure(AFTER, source), exported, f"best, of cycle {best.cycle}")

    @property
    def _history(self) -> list[Measured]:
        return [Measured(0, self.before), *self._measured]

    @property
    def _at_hand(self) -> list[Measured]:
        """Those of the history whose weights are there: a rule that came or went with a resume may
        call another version the best than the one that was kept."""
        untouched, *others = self._history
        return [untouched, *(it for it in others if kept_file(self._folder, it.cycle).exists())]

    def _is_due(self, report: Mapping[str, Any]) -> bool:
        every, published = self._settings.every_cycles, report.get("published", 0)
        # What the last cycle makes is measured at the end.
        if every is None or not 0 < published < self._cycles or report.get("stage") == "done":
            return False
        return is_due(published, self._tried, every)

    def _take_first(self) -> None:
        if self.before:
            self._row(Measured(0, self.before))
            self._judge()

    def _take(self, *, last_cycle: int) -> None:
        """Notes a finished evaluation of a version that has no later cycle than the last."""
        measuring, self._measuring = self._measuring, None
        try:
            answer = self._evaluator.result(measuring, self._meanwhile)
        except RunFailedError as error:
            log.warning("training goes on without this evaluation: %s", error)
            return
        if answer is None or answer[0] > last_cycle:
            return
        measured = Measured(*answer)
        self._tried = max(self._tried, measured.cycle)
        self._measured.append(measured)
        best = None if (found := self._best()) is None else found.cycle
        with self._writing:
            write_evaluations(self._folder, self._measured, best)
            thin_pictures(self._folder, best)
        self._row(measured)
        log.info("evaluated after cycle %d: %s", measured.cycle, _in_words(measured.metrics))
        self._judge()

    def _best(self) -> Measured | None:
        by = self._settings.best_by
        return None if by is None else best_of(self._at_hand, self._settings.stop, by)

    def _judge(self) -> None:
        """Asks the rule, whose first word stands."""
        settings = self._settings
        if self.stopped_early is None:
            self.stopped_early = why_stop(self._history, settings.stop, settings.best_by)

    def _row(self, measured: Measured) -> None:
        """A point of the curves; its step is the number of cycles behind the measured policy."""
        row = {"phase": EVALUATION_PHASE, "step": measured.cycle, "values": measured.metrics}
        self._rows.append(row)

    def _measure(self, moment: str, source: WeightsSource) -> dict[str, float]:
        begin = partial(self._evaluator.measure, moment, source)
        return Needed(self._evaluator, "the last evaluation", begin).wait(self._meanwhile)

    def _export(self, source: WeightsSource) -> str:
        begin = partial(self._evaluator.export, source)
        return Needed(self._evaluator, "the export", begin).wait(self._meanwhile)


def is_due(published: int, tried: int, every: int) -> bool:
    """Whether a multiple of `every` has been published since the version that was tried last."""
    return published // every > tried // every


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
