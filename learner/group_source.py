"""What a learner is given of the replay: where its groups come from, and how long it waits."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from buffer.records import IndexEntry, LogEntry
from buffer.replay import Replay


@dataclass(frozen=True, kw_only=True)
class GroupSource:
    """Where a learner's groups come from, whatever its method.

    Attributes:
        rewards: weight of every reward in the sum that is trained on, by name.
        standardised: names of those that are brought to mean 0 and deviation 1 before.
        max_open: groups that may be under way at once.
        max_staleness: cycles whose groups may be issued before their turn.
        capacity_groups: groups that the replay keeps.
        max_records: that may be asked for, repeated ones included; None: any number.
        fetched: told of every sample that a rank fetches how many policy versions and how many
            seconds old it is.
        told: given every entry of the log as it is read.
        drawn: given what a rank fetches, after the learner's policy version.
        stall_s: a wait without any new log entry for so long raises StallError.
        stopping: set from another thread to end a wait.
    """

    replay: Replay
    rewards: Mapping[str, float]
    group_size: int
    max_open: int
    max_staleness: int = 0
    capacity_groups: int
    stall_s: float
    stopping: threading.Event
    max_records: int | None = None
    standardised: frozenset[str] = frozenset()
    fetched: Callable[[Sequence[int], Sequence[float]], object] = lambda staleness, age_s: None
    told: Callable[[Sequence[LogEntry]], object] = lambda entries: None
    drawn: Callable[[int, int, Sequence[IndexEntry]], object] = lambda version, moment, entries: (
        None
    )
