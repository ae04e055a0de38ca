"""What a rank of the learner tells about its work, for progress, curves and the summary.

It is written by whoever does the work and read by whoever reports it; it decides nothing.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from learner.policy.flops import FlopMeter

log = logging.getLogger(__name__)


@dataclass
class Journal:
    """What a rank tells about its work: where it is, its metrics, seconds and FLOPs by phase."""

    stage: str = "starting"
    cycle: int = 0
    latest: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    meter: FlopMeter = field(default_factory=FlopMeter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    cycle_rows: list[dict[str, Any]] = field(default_factory=list)
    """Those of the cycle in hand, whoever has taken them meanwhile."""

    def enter(self, stage: str) -> None:
        """Begins a stage, which progress shows and the log tells."""
        if stage != self.stage:
            self.stage = stage
            log.info("stage: %s", stage)

    def record(self, phase: str, step: int, values: dict[str, float]) -> None:
        """One row of the curves; also what live progress shows."""
        self.latest.update(values)
        row = {"phase": phase, "step": step, "time": time.time(), "values": values}
        self.rows.append(row)
        self.cycle_rows.append(row)

    def begin(self, cycle: int) -> None:
        """A cycle of which nothing has been done."""
        self.cycle, self.cycle_rows = cycle, []

    def go_on(self, cycle: int, rows: Sequence[dict[str, Any]]) -> None:
        """A cycle that an earlier life has begun, with what it had told of it.

        It is told again: curves go on after the last whole cycle.
        """
        self.begin(cycle)
        for row in rows:
            self.record(row["phase"], row["step"], row["values"])

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Counts wall seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Counts the wall seconds of the block to a phase."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add_seconds(phase, time.monotonic() - begun)

    @contextmanager
    def counted(self, phase: str, kind: str = "") -> Iterator[None]:
        """Counts floating-point operations to a phase.

        Args:
            kind: of its steps, where not all of them cost the same.
        """
        before = self.meter.total
        with self.meter.counted((phase, kind)):
            yield
        self.flops[phase] = self.flops.get(phase, 0.0) + self.meter.total - before

    def drain(self) -> list[dict[str, Any]]:
        """Rows since the last call."""
        rows, self.rows = self.rows, []
        return rows
