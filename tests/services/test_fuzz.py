"""A short round of the fuzzing drill; `make fuzz` runs the long one."""

import pytest

from deploy.drills.fuzz_frames import fuzz_frames
from deploy.drills.fuzz_states import fuzz_states


def test_damaged_frames_are_refused_or_still_right() -> None:
    figures = fuzz_frames(20_000, seed=1)
    assert (figures["crashes"], figures["wrongly_accepted"]) == (0, 0)
    assert figures["refused"] > 15_000


@pytest.mark.slow
@pytest.mark.redis
def test_damaged_keys_crash_nothing_and_get_nothing_in() -> None:
    figures = fuzz_states(300, seed=1)
    assert (figures["crashes"], figures["wrongly_accepted"]) == (0, 0)
