"""Timing the same work in several ways, in turns, so that all see the same machine.

    ours ─► reference ─► reference ─► ours ─► ours ─► …        one round of all ways a repeat

A rate is an amount over seconds of one repeat; what is reported is the median and the quartiles of
the repeats, and of the quotient of the two ways *within* a repeat, which a slow minute of the
machine cannot move.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Prepare = Callable[[int], Callable[[], object]]
"""How often -> what does it so often; all that comes before the returned call is not timed."""
_MAX_CALLS = 100_000


@dataclass(frozen=True)
class Way:
    """One way of doing a piece of work."""

    name: str
    prepare: Prepare


@dataclass(frozen=True)
class Work:
    """The same work in one way or several; the last of several is what the others are compared to.

    Args:
        amounts: unit -> how much one call does, such as {"records": 48, "MB": 3.1}.
        calls: in one repeat; None: as many as take `least_s`.
    """

    name: str
    ways: Sequence[Way]
    amounts: Mapping[str, float]
    calls: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of a result table.

    Args:
        ratio: of this way's rate to the reference's; None for the reference itself.
    """

    work: str
    way: str
    unit: str
    rate: dict[str, float]
    ratio: dict[str, float] | None


def again_and_again(call: Callable[[], object]) -> Prepare:
    """The preparation of a call that needs none."""

    def prepare(count: int) -> Callable[[], object]:
        def run() -> None:
            for _ in range(count):
                call()

        return run

    return prepare


def measure(work: Work, *, repeats: int, least_s: float) -> list[Row]:
    """Rates of all ways, after a warm-up of each."""
    calls = [work.calls or _enough_calls(way, least_s) for way in work.ways]
    for way, count in zip(work.ways, calls, strict=True):
        way.prepare(count)()
    seconds_RW = np.zeros((repeats, len(work.ways)))
    for repeat in range(repeats):
        # In both orders, as the first of a round may find caches the last one has left.
        order = range(len(work.ways)) if repeat % 2 == 0 else reversed(range(len(work.ways)))
        for i in order:
            seconds_RW[repeat, i] = timed(work.ways[i], calls[i]) / calls[i]
    return [
        _row(work, i, unit, amount / seconds_RW)
        for i in range(len(work.ways))
        for unit, amount in work.amounts.items()
    ]


def timed(way: Way, calls: int) -> float:
    """Wall seconds of so many calls."""
    run = way.prepare(calls)
    gc.collect()
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    q1, median, q3 = np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])
    return {"median": _rounded(median), "q1": _rounded(q1), "q3": _rounded(q3)}


def as_json(row: Row) -> dict[str, Any]:
    """A row as it stands in a result file."""
    return dict(vars(row))


def _enough_calls(way: Way, least_s: float) -> int:
    calls = 1
    while (took_s := timed(way, calls)) < least_s and calls < _MAX_CALLS:
        calls = min(_MAX_CALLS, max(2 * calls, int(calls * least_s / max(took_s, 1e-6))))
    return calls


def _row(work: Work, i: int, unit: str, rate_RW: np.ndarray) -> Row:
    is_reference = i == len(work.ways) - 1
    ratio = None if is_reference else spread(rate_RW[:, i] / rate_RW[:, -1])
    return Row(work.name, work.ways[i].name, f"{unit}/s", spread(rate_RW[:, i]), ratio)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
