"""How long a learner has made no progress, as its reports tell it.

    report comes ──► … the same … ──► report is asked for that will be the same
         └──────────── still for so long, for sure ────────────┘

A report that is late tells nothing, and neither does a driver that was busy itself: such time
counts only once a report has come that was asked for after it.
"""

from collections.abc import Mapping
from typing import Any

_PROGRESS = ("stage", "cycle", "published", "seconds", "flops")
"""Of a report, what changes while a learner works or waits."""


class Stillness:
    """Of one life of a learner.

    Attributes:
        still_s: between the first and the last of the newest reports that were the same.
    """

    def __init__(self) -> None:
        self.still_s = 0.0
        self._progress: list[Any] = []
        self._since = 0.0

    def told(self, report: Mapping[str, Any], *, asked_at: float, now: float) -> None:
        """A report has come; times are of one clock, in seconds."""
        progress = [report.get(name) for name in _PROGRESS]
        if progress == self._progress:
            self.still_s = max(self.still_s, asked_at - self._since)
        else:
            self._progress, self._since, self.still_s = progress, now, 0.0
