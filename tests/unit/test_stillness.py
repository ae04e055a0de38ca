"""How long a learner is still: only as long as its reports say so for sure."""

from deploy.run.stillness import Stillness

WORKS = {"stage": "policy steps", "cycle": 1}


def test_reports_that_are_the_same_tell_how_long_it_is_still() -> None:
    still = Stillness()
    still.told(WORKS, asked_at=9, now=10)
    assert still.still_s == 0
    still.told(dict(WORKS), asked_at=30, now=31)
    still.told(dict(WORKS), asked_at=40, now=41)
    assert still.still_s == 30


def test_progress_begins_anew() -> None:
    still = Stillness()
    still.told(WORKS, asked_at=0, now=1)
    still.told(WORKS, asked_at=50, now=51)
    still.told({**WORKS, "cycle": 2}, asked_at=60, now=61)
    assert still.still_s == 0
    still.told({**WORKS, "cycle": 2}, asked_at=65, now=66)
    assert still.still_s == 4


def test_a_report_that_is_late_says_nothing_of_the_time_after_it_was_asked_for() -> None:
    still = Stillness()
    still.told(WORKS, asked_at=0, now=1)
    still.told(WORKS, asked_at=2, now=5000)
    assert still.still_s == 1


def test_what_else_a_report_tells_is_no_progress() -> None:
    still = Stillness()
    still.told({**WORKS, "latest": {"loss": 1.0}}, asked_at=0, now=1)
    still.told({**WORKS, "latest": {"loss": 2.0}}, asked_at=9, now=10)
    assert still.still_s == 8
