"""How a run is going, for a person: a live table on a terminal, plain lines in a job's log.

    with Progress(total_cycles=20) as progress:
        progress.show({"stage": "training", "cycle": 3, "rewards": {"2step": 0.61}, ...})

A snapshot is a plain mapping and any key may be missing. Knows nothing of Ray; never raises for
what a snapshot holds, nor where its line cannot be written.

    stage            text: STARTING, then the learner's own: collecting, fitting the surrogate,
                     training, done or stopped
    cycle            cycles that have ended
    rewards          mean true reward of fresh samples by steps, such as "2step"
    pair_accuracy    of the surrogate, on fresh samples
    samples          trajectories scored so far
    samples_per_s    over the last while; worked out from `samples` where it is missing
    queue            records that wait for their reward
    failures         records that failed
    stage_done       share of the stage that is done, 0 to 1, where it is known
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from deploy.run.best_effort import BestEffort

Snapshot = Mapping[str, Any]

STARTING = "starting the learner"
"""Stage of a learner that has no place yet, or loads its models."""
_LINE_EVERY_S = 5.0
# Long enough to bridge one evaluation, short enough to follow a fleet that was scaled.
_RATE_WINDOW_S = 60.0
_UNKNOWN = "–"


class Estimate:
    """Rates and the time that is left, from snapshots as they come."""

    def __init__(self, total_cycles: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total_cycles = total_cycles
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque()
        self._cycles: list[tuple[float, float]] = []
        self._preparing = False

    def update(self, snapshot: Snapshot) -> None:
        """Takes in how it stands now."""
        now = self._clock()
        samples, cycle = _number(snapshot.get("samples")), _number(snapshot.get("cycle"))
        if samples is not None:
            self._samples.append((now, samples))
        while self._samples and now - self._samples[0][0] > _RATE_WINDOW_S:
            self._samples.popleft()
        if cycle is not None and (not self._cycles or cycle > self._cycles[-1][1]):
            self._cycles.append((now, cycle))
        elif self._preparing and len(self._cycles) == 1:
            # What comes before the first cycle says nothing of how long one takes.
            self._cycles[0] = now, self._cycles[0][1]
        self._preparing = snapshot.get("stage") not in (None, "training")

    @property
    def samples_per_s(self) -> float | None:
        """Over the last minute; None before there are two counts."""
        if len(self._samples) < 2:
            return None
        (start_s, first), (end_s, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else None

    @property
    def left_s(self) -> float | None:
        """Time until the last cycle ends; None before one cycle was seen from end to end."""
        if len(self._cycles) < 2:
            return None
        (start_s, first), (end_s, last) = self._cycles[0], self._cycles[-1]
        per_cycle_s = (end_s - start_s) / (last - first)
        spent_s = self._clock() - end_s
        return max(0.0, (self._total_cycles - last) * per_cycle_s - min(spent_s, per_cycle_s))


class Progress:
    """Shows snapshots: redrawn in place on a terminal, one line every few seconds elsewhere."""

    def __init__(
        self,
        *,
        total_cycles: int,
        stream: TextIO | None = None,
        line_every_s: float = _LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._total_cycles = total_cycles
        self._line_every_s = line_every_s
        self._clock = clock
        self._estimate = Estimate(total_cycles, clock)
        self._live: Live | None = None
        self._writing = BestEffort("lines of progress")
        self._last_line_s = -math.inf
        self._last_stage: object = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            with self._writing:
                self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Takes a snapshot; in a log, a change of stage is shown at once."""
        self._estimate.update(snapshot)
        fields = fields_of(snapshot, self._total_cycles, self._estimate)
        if self._live is not None:
            with self._writing:
                self._live.update(_table(fields), refresh=True)
            return
        now, stage = self._clock(), snapshot.get("stage")
        if stage != self._last_stage or now - self._last_line_s >= self._line_every_s:
            self._last_line_s, self._last_stage = now, stage
            self.say(line_of(fields))

    def say(self, text: str) -> None:
        """One line above the table, or in the log."""
        with self._writing:
            self._console.print(text, markup=False)


def fields_of(snapshot: Snapshot, total_cycles: int, estimate: Estimate) -> dict[str, str]:
    """What is shown, as label and text; unknown values are left out."""
    rate = _number(snapshot.get("samples_per_s"))
    cycle = _number(snapshot.get("cycle"))
    share = _number(snapshot.get("stage_done"))
    texts = {
        "stage": _stage(snapshot.get("stage"), share),
        "cycle": None if cycle is None else f"{cycle:.0f}/{total_cycles}",
        **{
            f"reward {steps}": _fixed(reward, 3)
            for steps, reward in dict(snapshot.get("rewards") or {}).items()
        },
        "pair accuracy": _fixed(snapshot.get("pair_accuracy"), 3),
        "samples/s": _fixed(estimate.samples_per_s if rate is None else rate, 1),
        "queue": _fixed(snapshot.get("queue"), 0),
        "failed": _fixed(snapshot.get("failures"), 0),
        "left": duration(estimate.left_s),
    }
    return {label: text for label, text in texts.items() if text is not None}


def line_of(fields: Mapping[str, str]) -> str:
    """The fields as one line of a log."""
    stage = fields.get("stage", _UNKNOWN)
    rest = [f"{label} {text}" for label, text in fields.items() if label != "stage"]
    return " | ".join([stage, *rest])


def duration(seconds: float | None) -> str | None:
    """`1 h 05 min`, `3 min 20 s` or `12 s`."""
    if seconds is None or not math.isfinite(seconds):
        return None
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _table(fields: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", justify="right")
    table.add_column(justify="left")
    for label, text in fields.items():
        table.add_row(label, text)
    return table


def _stage(stage: object, share: float | None) -> str | None:
    if stage is None:
        return None
    return f"{stage}" if share is None else f"{stage} {100 * min(max(share, 0.0), 1.0):.0f} %"


def _fixed(value: object, digits: int) -> str | None:
    number = _number(value)
    return None if number is None else f"{number:.{digits}f}"


def _number(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None
