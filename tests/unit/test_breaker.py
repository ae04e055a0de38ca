"""The circuit breaker by a clock that the test moves."""

import pytest

from reward_servers.breaker import Breaker, RewardDownError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def new_breaker(**settings: float) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(clock=clock, **settings), clock


def test_it_is_closed_at_first() -> None:
    breaker, _ = new_breaker()
    assert (breaker.is_open, breaker.reason, breaker.wait_s()) == (False, "", 0)


def test_a_probe_that_fails_opens_it() -> None:
    breaker, _ = new_breaker()
    breaker.fail("service is down")
    assert (breaker.is_open, breaker.reason) == (True, "service is down")


def test_a_probe_that_works_closes_it() -> None:
    breaker, _ = new_breaker()
    breaker.fail("service is down")
    breaker.succeed()
    assert (breaker.is_open, breaker.reason, breaker.wait_s()) == (False, "", 0)


def test_probes_become_rarer_up_to_a_limit() -> None:
    breaker, _ = new_breaker(first_s=1, longest_s=5)
    waits = []
    for _ in range(5):
        breaker.fail("down")
        waits.append(breaker.wait_s())
    assert waits == [1, 2, 4, 5, 5]


def test_it_loses_its_patience_with_the_last_reason() -> None:
    breaker, clock = new_breaker(patience_s=60)
    breaker.fail("down")
    clock.now = 60
    breaker.fail("down")
    clock.now = 61
    with pytest.raises(RewardDownError, match="61 s: still down"):
        breaker.fail("still down")


def test_patience_counts_from_the_first_failure_of_the_row() -> None:
    breaker, clock = new_breaker(patience_s=60)
    breaker.fail("down")
    clock.now = 50
    breaker.succeed()
    clock.now = 100
    breaker.fail("down")
    assert breaker.is_open
