"""The circuit breaker by a clock that the test moves."""

import pytest

from reward_servers.breaker import Breaker, RewardDownError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def worked_once(**settings: float) -> tuple[Breaker, Clock]:
    clock = Clock()
    breaker = Breaker(failures=3, clock=clock, **settings)  # pyright: ignore[reportArgumentType]
    breaker.note(None)
    return breaker, clock


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.note("service is down")


def test_it_opens_after_failures_in_a_row() -> None:
    breaker, _ = worked_once()
    fail(breaker, 2)
    assert not breaker.is_open
    fail(breaker, 1)
    assert breaker.is_open
    assert breaker.reason == "service is down"


def test_a_success_between_them_keeps_it_closed() -> None:
    breaker, _ = worked_once()
    for _ in range(9):
        fail(breaker, 2)
        breaker.note(None)
    assert not breaker.is_open
    assert breaker.reason == ""


def test_a_trial_that_works_closes_it() -> None:
    breaker, _ = worked_once()
    fail(breaker, 5)
    breaker.note(None)
    assert not breaker.is_open
    assert breaker.wait_s() == 0


def test_it_stays_closed_for_a_reward_that_never_worked() -> None:
    breaker = Breaker(failures=3)
    fail(breaker, 50)
    assert not breaker.is_open


def test_trials_become_rarer_up_to_a_limit() -> None:
    breaker, _ = worked_once(first_s=1, longest_s=5)
    waits = []
    for _ in range(6):
        fail(breaker, 1)
        waits.append(breaker.wait_s())
    assert waits == [0, 0, 1, 2, 4, 5]


def test_it_loses_its_patience_with_the_last_reason() -> None:
    breaker, clock = worked_once(patience_s=60)
    fail(breaker, 3)
    clock.now = 60
    fail(breaker, 1)
    clock.now = 61
    with pytest.raises(RewardDownError, match="61 s: service is down"):
        fail(breaker, 1)


def test_patience_counts_from_the_first_failure_of_the_row() -> None:
    breaker, clock = worked_once(patience_s=60)
    fail(breaker, 3)
    clock.now = 100
    breaker.note(None)
    fail(breaker, 3)
    assert breaker.is_open
