"""The controller's handle on the learner's ranks, which are Ray actors.

A rank that dies, or makes no progress for long, takes its siblings with it, and all continue from
the newest checkpoint. So does one whose process has lost its GPU. Any other error that a rank
raises is the run's: it would only come again.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.slot import LOST
from buffer.lost_gpu import is_gpu_lost, telling_line
from deploy.run.build import LearnerRank
from deploy.run.parts import RunParts
from deploy.run.progress import STARTING
from deploy.run.stillness import Stillness
from deploy.settings.sections import Evaluation
from learner.settings.learner import Learner

log = logging.getLogger(__name__)
_ANSWER_TIMEOUT_S = 120.0
_MAX_RESTARTS = 5
_BACKOFF_S = 2.0
_HANGS_AFTER = 6
_LEAST_HANG_S = 3600.0
"""Times `limits.stall_s`, and at least so long, without any progress: a step, a checkpoint or the
loading of models tell nothing before they are done, and take no less where waits are short."""
_SILENCE_TAKES = 2
"""Times as long without any report: one call may keep all of Python waiting, or a network."""
_NOTICED_S = 20.0
"""How long after a rank's error Ray may take to tell that another one is dead."""


class RunFailedError(RuntimeError):
    """The run cannot go on; its text says why and what to do."""


@dataclass
class VainRestarts:
    """Restarts since the learner last got further than it ever had.

    What is done again from a checkpoint is no progress: else one that always dies before its next
    checkpoint would do the same cycles for ever.

    Attributes:
        furthest: cycle in which it died.
        in_a_row: deaths there or before, since it first came there.
    """

    furthest: int = -1
    in_a_row: int = 0

    def count(self, cycle: int) -> int:
        """One more death, in this cycle; how many in a row."""
        self.in_a_row = 1 if cycle > self.furthest else self.in_a_row + 1
        self.furthest = max(self.furthest, cycle)
        return self.in_a_row


@dataclass(frozen=True)
class _Starting:
    """Ranks that wait for a place.

    Attributes:
        placed: one for each, there once it has its own.
        until: by the monotonic clock.
    """

    placed: list[Any]
    until: float
    resume: bool


class Ranks:
    """The learner: `learner-0` and up.

    Attributes:
        last: rank 0's newest report.
    """

    def __init__(self, parts: RunParts, board: Any) -> None:
        self._parts = parts
        self._board = board
        self._actors: list[Any] = []
        self._running: list[Any] = []
        self._restarts = 0
        self._vain = VainRestarts()
        self._place: Any = None
        self._starting: _Starting | None = None
        self._asked_report: Any = None
        self._asked_report_at = 0.0
        self._asked_board: tuple[ray.ObjectRef[int], int] | None = None
        self._stop_asked = self._ends_unplaced = False
        self._rows: list[dict[str, Any]] = []
        self._stillness = Stillness()
        self.last: dict[str, Any] = {}

    def start(self, *, resume: bool) -> None:
        """Asks for a place for the ranks; `poll` sets them to work once they have it."""
        options = self._parts.config.learner
        host = ray.remote(LearnerRank)
        self._place = self._place or packed_place(
            options.ranks,
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            node_labels=options.node_labels,
        )
        lives = f".{self._restarts}" if self._restarts else ""
        self._actors = [
            host.options(
                name=f"learner-{rank}{lives}",
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus,
                max_concurrency=3,  # run, and beside it report and stop
                **_bundle(self._place, rank, options.node_labels),
            ).remote(self._parts, rank, self._board)
            for rank in range(options.ranks)
        ]
        # A node that takes the place of a lost one needs minutes to come.
        until = time.monotonic() + self._parts.config.limits.stall_s
        placed: Any = [actor.__ray_ready__.remote() for actor in self._actors]
        self._starting = _Starting(placed, until, resume)
        if self._stop_asked:  # of their earlier lives
            self._tell_to_stop()
        if self.last:
            self.last = {**self.last, "stage": STARTING}

    def poll(self) -> bool | None:
        """None: at work, or waiting for a place. True: trained to the end. False: stopped before.

        Raises:
            RunFailedError: a rank raised, died too often, or found no place.
        """
        if self._starting is not None:
            return False if self._ends_unplaced else self._run_if_placed(self._starting)
        self._read_report()
        ready, _ = ray.wait(self._running, num_returns=len(self._running), timeout=0)
        try:
            results = ray.get(ready)
        except RayTaskError as error:
            if (lost := self._lost_rank()) is not None:
                # Its siblings raised, most likely because they could not reach it any more.
                log.warning("a rank was lost; a first error was: %s", reason_of(error))
                return self._restart(lost)
            self._read_last_report()
            log.error("the learner ended with an error", exc_info=error)
            raise RunFailedError(f"the learner failed: {reason_of(error)}") from error
        except LOST as error:
            return self._restart(error)
        if len(results) < len(self._running):
            return self._restart(f"no progress for {self._hang_s:g} s") if self._hangs() else None
        self._read_last_report()
        return all(results)

    @property
    def _hang_s(self) -> float:
        return max(_HANGS_AFTER * self._parts.config.limits.stall_s, _LEAST_HANG_S)

    def _hangs(self) -> bool:
        """Whether rank 0 has told the same for too long, or nothing for far too long."""
        is_asked = self._asked_report is not None
        silent_s = time.monotonic() - self._asked_report_at if is_asked else 0.0
        return self._stillness.still_s > self._hang_s or silent_s > _SILENCE_TAKES * self._hang_s

    def _run_if_placed(self, starting: _Starting) -> bool | None:
        count = len(starting.placed)
        placed, _ = ray.wait(starting.placed, num_returns=count, timeout=0)
        try:
            ray.get(placed)
            if len(placed) == count:
                first = self._actors[0].address.remote()
                address, port = ray.get(first, timeout=_ANSWER_TIMEOUT_S)
                self._starting = None
                self._stillness = Stillness()
                self._running = [
                    a.run.remote(address, port, resume=starting.resume) for a in self._actors
                ]
                return None
        except LOST as error:
            return self._restart(error)
        if time.monotonic() > starting.until:
            limits, options = self._parts.config.limits, self._parts.config.learner
            raise RunFailedError(
                f"{count - len(placed)} of the learner's {count} ranks found no place within "
                f"limits.stall_s of {limits.stall_s:g} s: {lacks(options, count)}"
            )
        return None

    def published(self) -> list[Any]:
        """References to the weights that were published last.

        Not the board's: what a learner has made must not be lost with another actor.

        Raises:
            RunFailedError: there are none.
        """
        refs: list[Any] = []
        if self._starting is None:
            asked = self._actors[0].published.remote()
            with contextlib.suppress(GetTimeoutError):
                refs = ray.get(asked, timeout=_ANSWER_TIMEOUT_S)
        if not refs:
            raise RunFailedError("the learner ended before it had weights to tell: resume the run")
        return refs

    def rows(self) -> list[dict[str, Any]]:
        """Metric rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def ask_to_stop(self, *, for_result: bool = False) -> None:
        """Ends the ranks as soon as all that they have done can be saved, with a checkpoint.

        Args:
            for_result: what they have learned is wanted then, so that ranks without a place, or
                that die, are placed all the same, to tell it.
        """
        self._stop_asked = True
        self._ends_unplaced = self._ends_unplaced or not for_result
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        for actor in self._actors:
            actor.stop.remote()

    def ensure_published(self) -> None:
        """Has the newest version published again where the board was lost; waits for nobody."""
        if self._starting is not None:  # nobody there has published anything yet
            return
        if self._asked_board is None:
            # What is published after the question is no news that the board has lost.
            published = self.last.get("published", -1)
            self._asked_board = self._board.latest_version.remote(), published
            return
        answer, published = self._asked_board
        if not ray.wait([answer], timeout=0)[0]:
            return
        try:
            known = ray.get(answer)
        except RayError as error:
            log.debug("the board does not answer: %s", error)
        else:
            if known < published:
                log.warning("the policy board was lost; version %d is published again", published)
                self._actors[0].republish.remote()
        self._asked_board = None

    def _read_report(self, wait_s: float = 0.0) -> None:
        """Takes a report that has come, or asks for one; what is late is not lost."""
        if self._asked_report is None:
            self._asked_report = self._actors[0].report.remote()
            self._asked_report_at = time.monotonic()
        if not ray.wait([self._asked_report], timeout=wait_s)[0]:
            return
        asked, self._asked_report = self._asked_report, None
        try:
            self.last = ray.get(asked)
        except RayError as error:
            log.debug("no report: %s", error)
            return
        self._rows += self.last.pop("rows")
        asked_at = self._asked_report_at
        self._stillness.told(self.last, asked_at=asked_at, now=time.monotonic())

    def _read_last_report(self) -> None:
        for _ in range(2):  # the one that is under way, and the last
            self._read_report(_ANSWER_TIMEOUT_S)

    def _lost_rank(self) -> RayError | None:
        """Why a rank, or its GPU, is gone, if one is.

        Ray tells a death later than its siblings notice it.
        """
        waiting, deadline = list(self._running), time.monotonic() + _NOTICED_S
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            try:
                ray.get(ready)
            except RayTaskError as error:
                if is_gpu_lost(error.cause):
                    return error
            except LOST as error:
                return error
        return None

    def _restart(self, error: RayError | str) -> bool | None:
        """Places all ranks anew; False: the run was to end anyway.

        Args:
            error: of a rank that died, or what it died of.
        """
        self._restarts += 1
        cycle = self.last.get("cycle", 0)
        in_a_row = self._vain.count(cycle)
        why = reason_of(error) if isinstance(error, RayTaskError) else error
        log.warning("the learner is restarted (%d): %s", self._restarts, why)
        self.kill()
        if self._ends_unplaced:
            return False
        if in_a_row > _MAX_RESTARTS:
            raise RunFailedError(
                f"the learner died {in_a_row} times without getting further than cycle "
                f"{self._vain.furthest}: {why}"
            )
        time.sleep(_BACKOFF_S * in_a_row)
        self.start(resume=True)
        return None

    def kill(self) -> None:
        """Ends the ranks at once; the newest checkpoint is what is left of one that is busy."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors, self._running = [], []
        self._starting = self._asked_report = None


def lacks(part: Learner | Evaluation, count: int = 1) -> str:
    """What the cluster may not have for so many actors of a role that find no place."""
    labels = "".join(f", {key}={value}" for key, value in part.node_labels.items())
    return (
        f"the cluster may lack nodes with {part.num_cpus:g} CPUs and {part.num_gpus:g} GPUs left "
        f"for {'it' if count == 1 else f'each of {count}'}{labels}"
    )


def packed_place(
    ranks: int, *, num_cpus: float, num_gpus: float, node_labels: Mapping[str, str]
) -> PlacementGroup | None:
    """Room for several ranks on as few nodes as can be, since they exchange gradients.

    None where there is nothing to pack. A lost node's part is given a new place by Ray.
    """
    each = {name: n for name, n in (("CPU", num_cpus), ("GPU", num_gpus)) if n > 0}
    if ranks == 1 or not each:
        return None
    labels: Any = {"bundle_label_selector": [dict(node_labels)] * ranks} if node_labels else {}
    return placement_group([each] * ranks, strategy="PACK", **labels)


def _bundle(
    place: PlacementGroup | None, rank: int, node_labels: Mapping[str, str]
) -> dict[str, Any]:
    """Where a rank goes, as options of its actor; a placement group's own labels hold already."""
    if place is not None:
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(place, rank)}
    return on_nodes(node_labels)


def on_nodes(node_labels: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that goes only to nodes with these labels; none: to any node."""
    return {"label_selector": dict(node_labels)} if node_labels else {}


def reason_of(error: RayError) -> str:
    """In one line: the error that an actor raised, or what Ray says of the actor."""
    cause = getattr(error, "cause", None) or error
    line = telling_line(str(cause))
    return ": ".join([type(cause).__name__, *([line] if line else [])])
