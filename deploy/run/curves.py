"""The curves of a run: `metrics.jsonl`, which survives a crash, and TensorBoard's event files.

    with Curves(run_folder, resume_step=40) as curves:
        curves.write(41, "cycle", {"reward/2_step": 0.61})

One JSON object a line: `step`, `wall_s` (of training, without the pauses between two starts),
`phase` and `values`. A resumed run goes on after the step that its checkpoint names: what had been
written past it is dropped. What a learner that was placed anew tells once more takes the place of
what it had told, so that every step stands once. What the disk does not take is written once it
does, and until then the log says so.
"""

import contextlib
import json
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tensorboard.compat.proto import event_pb2 as _event_pb2
from tensorboard.compat.proto import summary_pb2 as _summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from deploy.run.best_effort import BestEffort
from deploy.run.files import EVENTS_FOLDER, METRICS_FILE
from deploy.run.whole_files import append_whole, naming, write_whole

log = logging.getLogger(__name__)
# Their classes are made when the modules are imported, where no type checker sees them.
event_pb2: Any = _event_pb2
summary_pb2: Any = _summary_pb2
_ROOM = 10_000
"""Points that wait for a disk that takes nothing; then the oldest of them are lost."""
_SHOW_AGAIN_S = 60.0
"""Between two tries to show points, each of which makes an event file, of a disk that is full."""


@dataclass(frozen=True)
class Point:
    """One line of the file."""

    step: int
    wall_s: float
    phase: str
    values: dict[str, float]


class Curves:
    """Writes a run's points; one writer a run."""

    def __init__(
        self,
        folder: Path,
        *,
        resume_step: int | None = None,
        done_phases: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            resume_step: last step that counts; None begins anew.
            done_phases: those that were over before it, with steps of their own: all points stay.
        """
        self._folder = folder
        self._resume_step = resume_step
        self._done_phases = done_phases
        self._clock = clock
        self._started_s = 0.0
        self._saving = BestEffort(f"new points in {METRICS_FILE}", meanwhile="which wait")
        self._unsaved: deque[Point] = deque(maxlen=_ROOM)
        # Phases that are to lose their points in the file from a step on.
        self._forgotten: dict[str, int] = {}
        self._showing = BestEffort("TensorBoard's files", meanwhile="which wait")
        self._events: Any = None
        self._unshown_from = math.inf
        self._show_again_at = -math.inf
        # By phase, its last step, and what was written of that.
        self._last: dict[str, tuple[int, set[str]]] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = self._keep(self._counts)
        self._started_s = self._clock() - (kept[-1].wall_s if kept else 0.0)
        if self._resume_step is None:
            shutil.rmtree(self._folder / EVENTS_FOLDER, ignore_errors=True)
        self._events = EventFileWriter(str(self._folder / EVENTS_FOLDER))
        if self._resume_step is not None:
            self._purge_events(self._resume_step + 1, kept)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._saving:
            self._save()
        if self._unsaved:
            lost = len(self._unsaved)
            log.error("%d points are lost: %s could not be written to the end", lost, METRICS_FILE)
        with self._showing, naming(self._folder / EVENTS_FOLDER):
            try:
                if self._unshown_from < math.inf:
                    self._show_missed()
            finally:
                if self._events is not None:
                    self._events.close()

    def write(self, step: int, phase: str, values: Mapping[str, float]) -> Point:
        """Appends one point, now or once the disk takes it, and returns it.

        Values that are no finite number are left out: JSON has no NaN.
        """
        wall_s = self._clock() - self._started_s
        numbers = {name: float(value) for name, value in values.items() if _is_number(value)}
        point = Point(step, round(wall_s, 3), phase, numbers)
        last, names = self._last.get(phase, (step, set()))
        is_again = step < last or (step == last and bool(names & numbers.keys()))
        if is_again:
            self._forget(phase, step)
        self._note(point)
        self._unsaved.append(point)
        with self._saving:
            self._save()
        if self._events is None and self._clock() < self._show_again_at:
            self._unshown_from = min(step, self._unshown_from)
            return point
        with self._showing, naming(self._folder / EVENTS_FOLDER):
            self._show(point, is_again=is_again)
        return point

    def _note(self, point: Point) -> None:
        last, names = self._last.get(point.phase, (point.step, set()))
        before = names if last == point.step else set()
        self._last[point.phase] = point.step, before | point.values.keys()

    def _forget(self, phase: str, step: int) -> None:
        """Forgets a phase from a step on; in the file when it is next written."""
        self._forgotten[phase] = min(step, self._forgotten.get(phase, step))
        kept = [p for p in self._unsaved if p.phase != phase or p.step < step]
        self._unsaved = deque(kept, maxlen=_ROOM)
        self._last.pop(phase, None)

    def _stays(self, point: Point) -> bool:
        return point.step < self._forgotten.get(point.phase, math.inf)

    def _save(self) -> None:
        """Writes what waits for it; nothing has changed where that fails."""
        if self._forgotten:
            self._keep(self._stays)
            self._forgotten.clear()
        append_whole(self._folder / METRICS_FILE, "".join(map(_line, self._unsaved)))
        self._unsaved.clear()

    def _show(self, point: Point, *, is_again: bool) -> None:
        """Tells TensorBoard of a point, and of what it has missed or is to forget."""
        self._unshown_from = min(point.step, self._unshown_from)
        try:
            if is_again or self._events is None:
                self._show_missed()
            else:
                self._add_events(point)
            self._unshown_from = math.inf
        except OSError:
            # Its thread ends at an error for good: another try needs a file of its own.
            self._show_again_at = self._clock() + _SHOW_AGAIN_S
            events, self._events = self._events, None
            with contextlib.suppress(OSError):
                if events is not None:
                    events.close()
            raise

    def _show_missed(self) -> None:
        self._events = self._events or EventFileWriter(str(self._folder / EVENTS_FOLDER))
        saved = filter(self._stays, read_points(self._folder / METRICS_FILE))
        self._purge_events(int(self._unshown_from), (*saved, *self._unsaved))

    def _keep(self, counts: Callable[[Point], bool]) -> list[Point]:
        """Rewrites the file with the points that count, which also drops a torn last line."""
        path = self._folder / METRICS_FILE
        kept = [point for point in read_points(path) if counts(point)]
        write_whole(path, "".join(_line(point) for point in kept))
        return kept

    def _counts(self, point: Point) -> bool:
        last = self._resume_step
        return last is not None and (point.step <= last or point.phase in self._done_phases)

    def _purge_events(self, step: int, kept: Iterable[Point]) -> None:
        """Tells TensorBoard to forget what it was told from this step on, but for what is kept."""
        self._add(step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        for point in kept:
            if point.step >= step:
                self._add_events(point)

    def _add_events(self, point: Point) -> None:
        value = summary_pb2.Summary.Value
        items = [
            value(tag=f"{point.phase}/{name}", simple_value=number)
            for name, number in point.values.items()
        ]
        self._add(point.step, summary=summary_pb2.Summary(value=items))
        self._events.flush()

    def _add(self, step: int, **content: Any) -> None:
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, **content))


def read_points(path: Path) -> list[Point]:
    """The points of a file in order; a line that is not whole, such as a torn last one, is not."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return [point for line in lines for point in _parsed(line)]
    except FileNotFoundError:
        return []


def _parsed(line: str) -> Iterator[Point]:
    try:
        raw = json.loads(line)
        values = {str(name): float(value) for name, value in raw["values"].items()}
        yield Point(int(raw["step"]), float(raw["wall_s"]), str(raw["phase"]), values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return


def _line(point: Point) -> str:
    return json.dumps(vars(point)) + "\n"


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or value is None:
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
