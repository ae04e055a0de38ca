"""A run ends when more of its newest records fail than it bears, early or late."""

import dataclasses
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from buffer.records import Counters
from deploy.run.failures import Failures
from deploy.run.ranks import RunFailedError
from deploy.settings.sections import FailureBudget

NOTHING = Counters(**{field.name: 0 for field in dataclasses.fields(Counters)})
BUDGET = FailureBudget(share=0.05, minimum=20, of_last=1000)


class Quarantine:
    """The part of the replay that knows reasons."""

    def quarantined(self, at_most: int) -> list[Any]:
        return [SimpleNamespace(reason=reason) for reason in ("too dark", "too dark", "too wide")]


def seen(committed: int, failed: int) -> Counters:
    return dataclasses.replace(NOTHING, committed=committed, failed=failed)


def failures(first: Counters = NOTHING, budget: FailureBudget = BUDGET) -> Failures:
    return Failures(budget, Quarantine(), first)  # type: ignore[arg-type]


def run(failures: Failures, counts: Iterable[tuple[int, int]]) -> None:
    for committed, failed in counts:
        failures.check(seen(committed, failed))


def test_few_failures_are_borne() -> None:
    run(failures(), [(0, 0), (0, 19), (500, 20), (5500, 260)])


def test_many_at_the_start_end_the_run_with_their_reasons() -> None:
    with pytest.raises(RunFailedError) as told:
        run(failures(), [(10, 20)])
    assert "20 of the last 30 records have no reward" in str(told.value)
    assert "budget of 5%: 2 × too dark; 1 × too wide." in str(told.value)


def test_a_reward_that_breaks_after_many_good_records_is_noticed_as_soon() -> None:
    good = [(committed, 0) for committed in range(0, 200_000, 100)]
    half = [(200_000 + n, n) for n in range(0, 400, 10)]
    watched = failures()
    run(watched, good)
    with pytest.raises(RunFailedError, match=r" of the last 1\d{3} records"):
        run(watched, half)


def test_a_run_that_goes_on_is_not_judged_by_what_is_over() -> None:
    before = (1000, 900)
    run(failures(seen(*before)), [before, (1100, 905)])


def test_a_budget_that_nothing_could_exceed_is_refused() -> None:
    with pytest.raises(ValueError, match="`of_last` is 10, of which `minimum` = 20 can never fail"):
        FailureBudget(of_last=10)


def test_failures_that_were_released_hide_no_later_ones() -> None:
    watched = failures()
    run(watched, [(5000, 100), (5000, 0), (5100, 0)])  # all are queued again, and then scored
    with pytest.raises(RunFailedError, match="25 of the last"):
        run(watched, [(5150, 25)])
