"""The index is a fold over the log, ordered by record id."""

import dataclasses
import random

import numpy as np
import pytest

from buffer.index import LogIndex
from buffer.records import EvictedEntry, FailedEntry, IndexEntry, LogEntry, record_id


def committed(place: int, ticket: int, member: int, reward: float = 0.0) -> IndexEntry:
    return IndexEntry(
        position=f"{place}-0",
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt="p",
        policy_version=ticket,
        seed=1,
        steps=(1, 2),
        scored=(0, 1),
        rewards={"b": (float(reward), reward + 1.0), "a": (-float(reward), 0.5)},
    )


def failed(place: int, ticket: int, member: int) -> FailedEntry:
    return FailedEntry(
        position=f"{place}-0",
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        reason="boom",
    )


def evicted(place: int, *members: tuple[int, int]) -> EvictedEntry:
    names = tuple(record_id(ticket, member) for ticket, member in members)
    return EvictedEntry(position=f"{place}-0", record_ids=names)


def folded(entries: list[LogEntry], group_size: int = 2) -> LogIndex:
    index = LogIndex(group_size=group_size)
    index.extend(entries)
    return index


def ids(index: LogIndex) -> list[str]:
    return [entry.record_id for entry in index.entries(range(len(index)))]


# Two groups, the second finished first; one member of ticket 0 fails.
LOG: list[LogEntry] = [
    committed(1, 1, 1, 4.0),
    committed(2, 0, 1, 2.0),
    committed(3, 1, 0, 3.0),
    failed(4, 0, 0),
]


def test_rows_are_in_the_order_of_record_ids() -> None:
    assert ids(folded(LOG)) == ["0000000000.001", "0000000001.000", "0000000001.001"]


def test_the_order_of_commits_does_not_change_the_table() -> None:
    shuffled = [committed(place, n // 3, n % 3, n) for place, n in enumerate((4, 1, 0, 5, 2, 3), 1)]
    ordered = [committed(place, n // 3, n % 3, n) for place, n in enumerate(range(6), 1)]
    one, other = folded(list(shuffled), 3), folded(list(ordered), 3)
    assert np.array_equal(one.reward("b"), other.reward("b"))
    assert ids(one) == ids(other)


def test_columns_belong_to_their_rows() -> None:
    index = folded(LOG)
    assert index.ticket.tolist() == [0, 1, 1]
    assert index.member.tolist() == [1, 0, 1]
    assert index.policy_version.tolist() == [0, 1, 1]
    assert index.reward("b").tolist() == [[2, 3], [3, 4], [4, 5]]
    assert index.reward("a").tolist() == [[-2, 0.5], [-3, 0.5], [-4, 0.5]]


def test_the_position_is_that_of_the_last_entry() -> None:
    assert folded(LOG).position == "4-0"


def test_an_empty_index_has_no_rows_and_no_groups() -> None:
    index = LogIndex(group_size=2)
    assert (len(index), index.reward_names, index.groups().shape) == (0, (), (0, 2))


def test_pages_of_any_size_give_the_same_index() -> None:
    rng = random.Random(0)
    log: list[LogEntry] = [committed(n + 1, n // 2, n % 2, n) for n in range(40)]
    log += [evicted(41, (0, 1), (1, 0)), failed(42, 20, 0), committed(43, 20, 1)]
    log += [committed(44, 3, 0, 6), evicted(45, (3, 1), (20, 1)), committed(46, 2, 0, 4)]
    whole, paged = folded(log), LogIndex(group_size=2)
    start = 0
    while start < len(log):
        stop = start + rng.randint(1, 5)
        paged.extend(log[start:stop])
        start = stop
    assert ids(paged) == ids(whole)
    assert np.array_equal(paged.reward("b"), whole.reward("b"))


def test_entries_seen_before_change_nothing() -> None:
    index = folded(LOG)
    index.extend(LOG)
    assert (len(index), index.num_failed) == (3, 1)


def test_positions_compare_as_numbers() -> None:
    index = folded([committed(9, 0, 0)])
    index.extend([committed(10, 0, 1)])
    assert len(index) == 2


def on_servers(entry: LogEntry, position: str) -> LogEntry:
    return dataclasses.replace(entry, position=position)


def test_an_entry_is_seen_when_its_own_server_was_read_so_far() -> None:
    first, second = committed(1, 0, 0), committed(1, 1, 0)
    index = folded([on_servers(first, "5-0,0-0"), on_servers(second, "5-0,3-0")])
    index.extend([on_servers(second, "0-0,3-0"), on_servers(failed(1, 1, 0), "4-0,3-0")])
    assert (len(index), index.num_failed, index.position) == (2, 0, "5-0,3-0")


def test_the_position_never_falls_back_on_any_server() -> None:
    index = folded([on_servers(committed(1, 0, 0), "5-0,3-0")])
    index.extend([on_servers(committed(1, 2, 0), "6-0,0-0")])
    assert (len(index), index.position) == (2, "6-0,3-0")


def test_a_log_on_another_number_of_servers_is_an_error() -> None:
    index = folded([on_servers(committed(1, 0, 0), "5-0,3-0")])
    with pytest.raises(ValueError, match="as many servers as it began with"):
        index.extend([on_servers(committed(1, 1, 0), "5-0,3-0,1-0")])


def test_evicted_records_leave_the_table() -> None:
    index = folded([*LOG, evicted(5, (1, 1), (0, 1))])
    assert ids(index) == ["0000000001.000"]


def test_a_record_committed_after_an_eviction_stays() -> None:
    assert len(folded([committed(1, 0, 0), evicted(2, (0, 0)), committed(3, 0, 1)])) == 1


def test_an_index_that_became_empty_fills_again() -> None:
    index = folded([committed(1, 0, 0), evicted(2, (0, 0))])
    assert len(index) == 0
    index.extend([committed(3, 0, 1)])
    assert index.reward_names == ("a", "b")


def test_dropped_records_leave_the_table() -> None:
    index = folded(LOG)
    index.drop(["0000000001.000", "0000000009.000"])
    assert ids(index) == ["0000000000.001", "0000000001.001"]


def test_a_ticket_with_an_open_record_is_not_finished() -> None:
    assert not folded(LOG[:3]).finished(0, 1)


def test_committed_and_failed_records_finish_a_ticket() -> None:
    index = folded(LOG)
    assert index.finished(0, 2)
    assert not index.finished(0, 3)


def test_a_ticket_stays_finished_when_its_records_are_evicted() -> None:
    assert folded([*LOG, evicted(5, (1, 0), (1, 1))]).finished(0, 2)


def test_tickets_finish_in_any_order() -> None:
    index = folded([committed(1, 3, 0), committed(2, 3, 1)])
    assert index.finished(3, 4)
    assert not index.finished(2, 4)


def test_a_record_written_again_changes_nothing() -> None:
    index = folded([committed(1, 0, 0, 2.0), committed(2, 0, 0, 2.0)])
    assert len(index) == 1
    index.extend([committed(3, 0, 0, 2.0)])
    assert len(index) == 1
    assert not index.finished(0, 1)


def test_a_failed_record_that_is_committed_later_counts_once() -> None:
    index = folded([failed(1, 0, 0), committed(2, 0, 0)])
    assert not index.finished(0, 1)
    index.extend([committed(3, 0, 1)])
    assert index.finished(0, 1)


def test_tickets_may_be_declared_finished() -> None:
    index = folded([committed(1, 0, 0), *LOG[:1]])
    index.finish_below(3)
    assert index.finished(0, 3)
    assert not index.finished(3, 4)


def test_priorities_follow_their_records() -> None:
    index = folded([committed(1, 1, 0), committed(2, 0, 1)])
    assert index.priority.tolist() == [1.0, 1.0]
    index.set_priorities({record_id(1, 0): 0.5, record_id(9, 0): 7.0, record_id(0, 0): 3.0})
    index.extend([committed(3, 0, 0)])
    assert index.priority.tolist() == [1.0, 1.0, 0.5]


def test_no_tickets_are_always_finished() -> None:
    assert LogIndex(group_size=2).finished(5, 5)


def test_a_ticket_finishes_after_those_that_were_declared_finished() -> None:
    index = LogIndex(group_size=2)
    index.finish_below(3)
    assert index.finished(0, 3)
    index.extend([committed(1, 3, 0), committed(2, 3, 1)])
    assert index.finished(0, 4)


def test_rows_of_a_range_of_tickets() -> None:
    index = folded(LOG)
    assert index.rows_of(1, 2).tolist() == [1, 2]
    assert index.rows_of(2, 9).tolist() == []


def test_groups_are_complete() -> None:
    assert folded(LOG).groups().tolist() == [[1, 2]]


def test_groups_of_some_rows_only() -> None:
    index = folded(LOG)
    assert index.groups(index.rows_of(1, 2)).tolist() == [[1, 2]]
    assert index.groups(index.rows_of(0, 1)).tolist() == []


def test_rewards_of_groups_are_member_by_member() -> None:
    index = folded(LOG)
    assert index.rewards_of("b", index.groups()).tolist() == [[[3, 4], [4, 5]]]


def test_a_log_of_another_group_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="another group size"):
        folded([committed(1, 0, 2)])


def test_a_log_that_mixes_rewards_is_an_error() -> None:
    other = committed(2, 0, 1)
    mixed = IndexEntry(**{**vars(other), "rewards": {"c": (1.0, 2.0)}})
    with pytest.raises(ValueError, match="mixes two configurations"):
        folded([committed(1, 0, 0), mixed])
