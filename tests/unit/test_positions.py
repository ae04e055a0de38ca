"""Positions in the logs of several servers, and which tickets are a server's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.records import START, furthest, parse_position, places_in, position_text
from buffer.replay_settings import ReplaySettings

PLACE = st.tuples(st.integers(0, 10**15), st.integers(0, 99))
THREE = st.lists(PLACE, min_size=3, max_size=3).map(tuple)


@given(st.lists(PLACE, min_size=1, max_size=5).map(tuple))
def test_a_position_comes_back_from_its_text(places: tuple[tuple[int, int], ...]) -> None:
    assert parse_position(position_text(places)) == places


@pytest.mark.parametrize("text", ["", "1", "1-", "1-0,", ",1-0", "1-0 2-0", "01-0", "1-0;2-0"])
def test_anything_else_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="not a log position"):
        parse_position(text)


@given(THREE, THREE)
def test_the_furthest_of_two_is_behind_neither_and_one_of_them_everywhere(
    one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]
) -> None:
    reached = furthest(one, other)
    assert reached == furthest(other, one)
    assert furthest(reached, one) == reached
    assert all(place in pair for place, *pair in zip(reached, one, other, strict=True))


def test_the_start_is_before_everything_on_any_number_of_servers() -> None:
    places = parse_position("5-1,0-0")
    assert furthest(parse_position(START), places) == places
    assert places_in(parse_position(START), 3) == ((0, 0), (0, 0), (0, 0))


def test_places_compare_as_numbers() -> None:
    assert furthest(parse_position("9-10"), parse_position("10-9")) == ((10, 9),)


@given(shards=st.integers(1, 7), at_least=st.integers(0, 10**6))
def test_the_next_tickets_of_all_servers_are_the_next_of_the_run(
    shards: int, at_least: int
) -> None:
    urls = " ".join(f"redis://server{number}" for number in range(shards))
    settings = ReplaySettings(url=urls, run="x", capacity_records=1).of_shards()
    firsts = [each.first_ticket(at_least) for each in settings]
    assert sorted(firsts) == list(range(at_least, at_least + shards))
    assert [first % shards for first in firsts] == list(range(shards))


@pytest.mark.parametrize(("shard", "shards"), [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_is_none_is_refused(shard: int, shards: int) -> None:
    with pytest.raises(ValueError, match=f"shard {shard} is none of"):
        ReplaySettings(url="redis://a", run="x", capacity_records=1, shard=shard, shards=shards)
