"""The controller's handle on the evaluator, a Ray actor, and on what a run needs of it."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from actors.slot import LOST
from buffer.lost_gpu import is_gpu_lost
from deploy.evaluation.host import EvaluatorHost, WeightsSource
from deploy.run.best_effort import BestEffort
from deploy.run.files import BEFORE, BEFORE_FILE, pictures_file
from deploy.run.folder import RunFolder
from deploy.run.ranks import RunFailedError, lacks, on_nodes, reason_of
from deploy.run.shared_folder import SharedFolder
from deploy.settings.run_config import RunConfig

log = logging.getLogger(__name__)
_MAX_RETRIES = 5
"""Of one evaluation whose evaluator dies; Ray starts an evaluator again however often it dies."""
_MOST_AGAIN = 3
"""Times that what a run needs is begun again: a fault that returns would else keep it for days."""


class EvaluatorLostError(RunFailedError):
    """The evaluator was late, is gone or has lost its GPU; a new one has taken its place."""


class EvaluatorHandle:
    """The evaluator actor, as the controller uses it: it does one thing at a time."""

    def __init__(self, config: RunConfig, folder: SharedFolder) -> None:
        self._folder = folder.path
        self._timeout_s = config.evaluation.timeout_s
        self._stall_s = config.limits.stall_s
        self._options = config.evaluation
        self._given = config, folder
        self._replaced = 0
        self._actor = self._new()
        self._asked_at = self._began_at = time.monotonic()
        self._placed: Any = self._actor.check_folder.remote()

    def _new(self) -> Any:
        options, lives = self._options, f".{self._replaced}" if self._replaced else ""
        return (
            ray.remote(EvaluatorHost)
            .options(
                name=f"evaluator{lives}",
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus,
                **on_nodes(options.node_labels),
                max_restarts=-1,
                max_task_retries=_MAX_RETRIES,
            )
            .remote(*self._given)
        )

    def check_placed(self) -> None:
        """Nothing while it is at work, or may still find its place.

        Raises:
            RunFailedError: it has none after `limits.stall_s`, or the run's folder is not there; a
                run would end without a result.
        """
        if self._placed is None:
            return
        if ray.wait([self._placed], timeout=0)[0]:
            placed, self._placed = self._placed, None
            self.result(placed)
        elif time.monotonic() - self._asked_at > self._stall_s:
            raise RunFailedError(
                f"the evaluator found no place within limits.stall_s of {self._stall_s:g} s: "
                + lacks(self._options)
            )

    def measure(self, moment: str, source: WeightsSource) -> Any:
        """Begins an evaluation of weights, by references or in a file; none: the untouched ones."""
        self._began_at = time.monotonic()
        return self._actor.evaluate.remote(source, pictures_file(self._folder, moment))

    def measure_newest(self, board: Any, at_least: int, *, keep: bool) -> Any:
        """Begins an evaluation of the newest published version, `EvaluatorHost.evaluate_newest`."""
        self._began_at = time.monotonic()
        return self._actor.evaluate_newest.remote(board, at_least, self._folder, keep=keep)

    def export(self, source: WeightsSource) -> Any:
        """Begins to write weights in the form that diffusers loads."""
        return self._actor.export.remote(source, self._folder)

    def is_ready(self, ref: Any) -> bool:
        """Whether `result` would not wait."""
        return bool(ray.wait([ref], timeout=0)[0])

    def is_late(self) -> bool:
        """Whether the last begun evaluation had `evaluation.timeout_s`; exports are not counted."""
        return time.monotonic() - self._began_at > self._timeout_s

    def replace(self) -> None:
        """Ends the evaluator, with all that was asked of it, for a new one."""
        self._replaced += 1
        log.warning("the evaluator is replaced (%d)", self._replaced)
        ray.kill(self._actor)
        self._actor, self._placed = self._new(), None

    def result(self, ref: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """Waits for what `measure` or `export` began.

        Args:
            meanwhile: called about once a second; what it raises ends the wait.

        Raises:
            EvaluatorLostError: it was late, is gone or has lost its GPU, and is replaced.
            RunFailedError: the evaluation raised.
        """
        deadline = time.monotonic() + self._timeout_s
        while not ray.wait([ref], timeout=1.0)[0]:
            meanwhile()
            if time.monotonic() > deadline:
                self.replace()
                raise EvaluatorLostError(
                    f"the evaluator took longer than evaluation.timeout_s of {self._timeout_s:g} s:"
                    " raise it, or lower evaluation.samples"
                )
        try:
            return ray.get(ref)
        except RayError as error:
            log.error("the evaluator ended with an error", exc_info=error)
            if isinstance(error, LOST) or is_gpu_lost(getattr(error, "cause", None) or error):
                self.replace()
                raise EvaluatorLostError(f"the evaluator was lost: {reason_of(error)}") from error
            raise RunFailedError(f"the evaluation failed: {reason_of(error)}") from error


class Needed:
    """What a run cannot do without: begun again, a few times, by an evaluator that takes the place.

    Args:
        what: for the log.
        begin: begins it by a call of the evaluator.
    """

    def __init__(self, evaluator: EvaluatorHandle, what: str, begin: Callable[[], Any]) -> None:
        self._evaluator = evaluator
        self._what = what
        self._begin = begin
        self._num_again = 0
        self._under_way = begin()

    def look(self) -> Any:
        """Its result, or None where it is not there yet; waits for nobody.

        Raises:
            RunFailedError: as `wait`.
        """
        if self._evaluator.is_ready(self._under_way):
            try:
                return self._evaluator.result(self._under_way)
            except EvaluatorLostError as error:
                self._begin_again(error)
        elif self._evaluator.is_late():
            self._evaluator.replace()
            self._begin_again(EvaluatorLostError("it took too long"))
        return None

    def wait(self, meanwhile: Callable[[], None]) -> Any:
        """Its result, as `EvaluatorHandle.result`.

        Raises:
            RunFailedError: it raised, or the evaluator was lost too often.
        """
        while True:
            try:
                return self._evaluator.result(self._under_way, meanwhile)
            except EvaluatorLostError as error:
                self._begin_again(error)

    def _begin_again(self, error: EvaluatorLostError) -> None:
        if self._num_again == _MOST_AGAIN:
            raise RunFailedError(
                f"{self._what} was begun again {_MOST_AGAIN} times, and each time the evaluator "
                "died, lost its GPU or took longer than evaluation.timeout_s; at last: "
                f"{error}. Raise that, or lower evaluation.samples, if it was the time"
            ) from error
        self._num_again += 1
        log.warning("%s is begun again (%d): %s", self._what, self._num_again, error)
        self._under_way = self._begin()


class FirstEvaluation:
    """The scores of the untouched policy, measured beside the first stages of a run.

    A run that is resumed takes them from its folder, as does one of a study where another run has
    measured them.

    Attributes:
        metrics: empty until they are there.
    """

    def __init__(self, evaluator: EvaluatorHandle, folder: RunFolder) -> None:
        self.metrics = folder.read_before()
        self._folder = folder
        self._writing = BestEffort(
            BEFORE_FILE, meanwhile="which a resumed run would measure once more"
        )
        self._measuring: Needed | None = None
        if not self.metrics:
            begin = partial(evaluator.measure, BEFORE, [])
            self._measuring = Needed(evaluator, "the first evaluation", begin)

    def look(self) -> None:
        """Keeps them as soon as they are there, whatever becomes of the run.

        Raises:
            RunFailedError: it raised, or the evaluator was lost too often.
        """
        if self._writing.fails:
            self._write()
        if self._measuring is not None and (metrics := self._measuring.look()) is not None:
            self._take(metrics)

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until they are there.

        Raises:
            RunFailedError: as `look`.
        """
        if self._measuring is not None:
            self._take(self._measuring.wait(meanwhile))

    def _take(self, metrics: dict[str, float]) -> None:
        self.metrics, self._measuring = metrics, None
        self._write()

    def _write(self) -> None:
        with self._writing:
            self._folder.write_before(self.metrics)
