"""A cycle that is clipped as a whole: told once when it begins, and once when it is over."""

import pytest

from learner.methods.clip_watch import ClipWatch


def told(watch: ClipWatch, *cycles: tuple[float, ...]) -> list[bool | None]:
    """After each cycle, from the clip fractions of its updates."""
    found = []
    for updates in cycles:
        *before, last = [
            watch.seen(share, is_last=number == len(updates) - 1)
            for number, share in enumerate(updates)
        ]
        assert before == [None] * len(before)
        found.append(last)
    return found


@pytest.mark.parametrize("updates", [(1.0, 0.99), (0.0, 1.0), (0.5,)])
def test_a_cycle_with_any_row_that_learns_is_not_told(updates: tuple[float, ...]) -> None:
    assert told(ClipWatch(), updates) == [None]


def test_cycles_that_are_clipped_are_told_when_they_begin_and_when_they_are_over() -> None:
    clipped, good = (1.0, 1.0), (0.2, 1.0)
    cycles = (good, clipped, clipped, clipped, good, good, clipped)
    assert told(ClipWatch(), *cycles) == [None, True, None, None, False, None, True]


def test_what_was_told_before_a_resume_is_not_told_again() -> None:
    before = ClipWatch()
    told(before, (1.0,))
    assert told(ClipWatch(is_all=before.is_all), (1.0,), (0.5,)) == [None, False]
