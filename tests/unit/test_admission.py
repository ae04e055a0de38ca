"""The admission rule is played as a small run: its invariant holds, and nobody waits for ever."""

import pytest

from buffer.admission import limit_by_window


def test_no_more_than_the_window_is_open() -> None:
    issued = finished = 0
    while finished < 20:
        issued = max(issued, limit_by_window(num_finished=finished, max_open=3))
        assert issued - finished == 3
        finished += 1


def test_a_window_that_nothing_passes_is_refused() -> None:
    with pytest.raises(ValueError, match="no group may ever be issued"):
        limit_by_window(num_finished=0, max_open=0)
