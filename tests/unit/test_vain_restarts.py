"""When a learner that dies again and again is given up."""

import itertools

from deploy.run.ranks import VainRestarts


def counts(*cycles: int) -> list[int]:
    deaths = VainRestarts()
    return [deaths.count(cycle) for cycle in cycles]


def test_deaths_in_one_cycle_add_up() -> None:
    assert counts(3, 3, 3) == [1, 2, 3]


def test_getting_further_than_ever_begins_a_new_count() -> None:
    assert counts(3, 3, 4, 4) == [1, 2, 1, 2]


def test_a_cycle_that_was_done_before_is_no_progress() -> None:
    again_and_again = itertools.islice(itertools.cycle((12, 11)), 6)
    assert counts(*again_and_again) == [1, 2, 3, 4, 5, 6]


def test_a_death_while_it_loads_is_no_progress_either() -> None:
    assert counts(12, 0, 12, 0) == [1, 2, 3, 4]
