"""Callbacks of a run: code of the user's that is told how a run goes, in its driver.

    driver ──start, points, evaluation, end──► a queue ──► a thread ──► on_start, on_points, …

Each callback has a thread and a bounded queue of its own. It can neither end a run nor hold one up:
what it raises is logged and counted, several failures in a row take it out, and what comes while
its queue is full is dropped and told. Only the end of a run waits, for `CLOSE_S` at most.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from deploy.run.curves import Point
from deploy.run.files import AFTER, BEFORE, EVALUATION_PHASE, LAST, cycle_name, pictures_file
from deploy.settings.run_config import RunConfig
from reward_servers.registry import class_of

log = logging.getLogger(__name__)
CLOSE_S = 30.0
_ROOM = 256  # calls; a driver makes two a second at most
_PATIENCE = 3
METHODS = ("on_start", "on_points", "on_evaluation", "on_end")


@dataclass(frozen=True)
class RunInfo:
    """The run that begins.

    Attributes:
        config: every setting, as `config.json` has it.
        resumed: it goes on from a checkpoint, and points after that come once more.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    resumed: bool


class Callback(Protocol):
    """What a callback may have; every method is optional. All are called from one thread."""

    def on_start(self, run: RunInfo) -> None:
        """Before anything of the run is started."""
        ...

    def on_points(self, points: Sequence[Point]) -> None:
        """What has been written into `metrics.jsonl` since the last call."""
        ...

    def on_evaluation(
        self, cycle: int, metrics: Mapping[str, float], pictures: Path | None
    ) -> None:
        """An evaluation, of the policy after so many cycles.

        Args:
            pictures: .npz of `images` uint8 [N, H, W, 3] and `prompts` [N], if there is one.
        """
        ...

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The last call, however the run ended; with `summary.json`."""
        ...


class Caller:
    """One callback with its thread and its queue.

    Args:
        make: makes the callback; called in the thread.
        patience: failures in a row that take it out.
        room: calls that may wait.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        *,
        patience: int = _PATIENCE,
        room: int = _ROOM,
    ) -> None:
        self.name = name
        self.failures = 0
        self.dropped = 0
        self._make = make
        self._patience = patience
        self._in_a_row = 0
        self._calls: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(room)
        self._out = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"callback {name}", daemon=True)
        self._thread.start()

    def tell(self, method: str, *args: Any) -> None:
        """Has a method called soon; waits for nobody."""
        if self._out.is_set():
            return
        try:
            self._calls.put_nowait((method, args))
        except queue.Full:
            if self.dropped == 0:
                log.warning("callback %s is too slow: calls of it are dropped", self.name)
            self.dropped += 1

    def end(self, summary: Mapping[str, Any], deadline: float) -> None:
        """Makes the last call, and waits for what is left until a time of `time.monotonic`."""
        try:
            for last in (("on_end", (summary,)), None):
                if not self._out.is_set():
                    self._calls.put(last, timeout=max(0.0, deadline - time.monotonic()))
        except queue.Full:
            self.dropped += 1
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            log.warning("callback %s is still at work and is left behind", self.name)
        if self.dropped:
            log.warning("callback %s missed %d calls, being too slow", self.name, self.dropped)

    def stats(self) -> dict[str, Any]:
        """How it fared: `failures`, `dropped` calls, and whether it was taken `out`."""
        return {"failures": self.failures, "dropped": self.dropped, "out": self._out.is_set()}

    def _run(self) -> None:
        try:
            callback = self._make()
        except Exception:
            log.exception("callback %s cannot be made and is left out", self.name)
            self.failures += 1
            self._out.set()
            return
        while not self._out.is_set() and (call := self._calls.get()) is not None:
            self._call(getattr(callback, call[0], None), call[0], call[1])

    def _call(self, method: Callable[..., Any] | None, name: str, args: tuple[Any, ...]) -> None:
        if method is None:
            return
        try:
            method(*args)
            self._in_a_row = 0
        except Exception:
            self.failures += 1
            self._in_a_row += 1
            log.exception("callback %s failed in %s", self.name, name)
            if self._in_a_row >= self._patience:
                log.warning("callback %s is called no more", self.name)
                self._out.set()


class Callbacks:
    """All callbacks of a run."""

    def __init__(self, callers: Sequence[Caller], folder: Path) -> None:
        self._callers = callers
        self._folder = folder

    def start(self, config: RunConfig, *, resumed: bool) -> None:
        """Tells that the run begins."""
        told = RunInfo(config.name, self._folder, config.model_dump(mode="json"), resumed)
        self._tell("on_start", told)

    def points(self, points: Sequence[Point]) -> None:
        """Tells of new points, and which evaluations are among them."""
        if points:
            self._tell("on_points", tuple(points))
        for point in points:
            if point.phase == EVALUATION_PHASE:
                pictures = self._pictures(point.step)
                self._tell("on_evaluation", point.step, dict(point.values), pictures)

    def end(self, summary: Mapping[str, Any], *, within_s: float = CLOSE_S) -> None:
        """Tells that the run is over, and waits for the callbacks, but for no longer than that."""
        deadline = time.monotonic() + within_s
        for caller in self._callers:
            caller.end(summary, deadline)

    def stats(self) -> dict[str, dict[str, Any]]:
        """Of every callback, by name."""
        return {caller.name: caller.stats() for caller in self._callers}

    def _tell(self, method: str, *args: Any) -> None:
        for caller in self._callers:
            caller.tell(method, *args)

    def _pictures(self, cycle: int) -> Path | None:
        """Those of an evaluation after so many cycles."""
        moments = [BEFORE] if cycle == 0 else [cycle_name(cycle), LAST, AFTER]
        files = (pictures_file(self._folder, moment) for moment in moments)
        return next((path for path in files if path.is_file()), None)


def callbacks_of(config: RunConfig, folder: Path) -> Callbacks:
    """Those of a config, each with its thread; numbered where several are of one kind."""
    callers = []
    for number, each in enumerate(config.callbacks):
        repeated = each.kind in [other.kind for other in config.callbacks[:number]]
        name = f"{each.kind} ({number})" if repeated else each.kind
        callers.append(Caller(name, partial(_made, each.kind, each.args)))
    if (wandb := config.logging.wandb) is not None:
        from deploy.run.wandb_logger import WandbLogger

        # Its network may be away for good: that is told once.
        callers.append(Caller("wandb", partial(WandbLogger, wandb), patience=1))
    return Callbacks(callers, folder)


def check_callback(kind: str, args: Mapping[str, Any]) -> None:
    """Looks for what a run would stumble over; builds nothing.

    Raises:
        ValueError: it cannot be imported, has none of the methods, or takes other arguments.
    """
    make = class_of("callback", kind, {}, args)
    if isinstance(make, type) and not any(hasattr(make, name) for name in METHODS):
        raise ValueError(
            f"callback {kind!r} has none of the methods {', '.join(METHODS)}; "
            "see deploy.callbacks.Callback"
        )


def _made(kind: str, args: Mapping[str, Any]) -> Any:
    return class_of("callback", kind, {}, args)(**args)
