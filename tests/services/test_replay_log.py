"""What a replay's log promises: it tells of every live record, and can be followed."""

import dataclasses
import threading

import pytest

from buffer.index import LogIndex
from buffer.records import START, IndexEntry
from buffer.redis_replay import RedisReplay
from tests.services.replay_calls import MakeGroup, MakeScores, NewReplay, claim, one_server, put

pytestmark = pytest.mark.redis


@one_server
def test_the_log_is_trimmed_but_never_of_live_records(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=10)
    put(replay, [make_group(ticket, size=200) for ticket in range(15)])
    while records := claim(replay, 1):
        replay.commit([(records[0].record_id, scores())])
    index, entries = LogIndex(group_size=200), replay.tail(START, max_entries=10_000)
    index.extend(entries)
    assert len(entries) < 4400
    assert [e.member for e in index.entries(range(10))] == list(range(190, 200))


@one_server
def test_the_entry_of_a_record_that_outlives_the_log_is_written_again(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=10, remover="lowest_priority")
    put(replay, [make_group(ticket, size=200) for ticket in range(20)])
    follower, kept = LogIndex(group_size=200), "0000000000.003"
    while records := claim(replay, 1):
        replay.commit([(records[0].record_id, scores())])
        replay.set_priorities({kept: 5.0}, generation=1)
        if records[0].member % 50 == 0:
            follower.extend(replay.tail(follower.position, max_entries=1000))
    follower.extend(replay.tail(follower.position, max_entries=1000))
    entries = replay.tail(START, max_entries=10_000)
    rebuilt = LogIndex(group_size=200)
    rebuilt.extend(entries)
    assert len(entries) < 4400
    assert rebuilt.entry(0).record_id == kept
    assert [e.record_id for e in rebuilt.entries(range(len(rebuilt)))] == [
        e.record_id for e in follower.entries(range(len(follower)))
    ]


def test_a_tail_continues_where_it_stopped(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0, size=5)])
    replay.commit([(record.record_id, scores()) for record in claim(replay)])
    index = LogIndex(group_size=5)
    while entries := replay.tail(index.position, max_entries=2):
        index.extend(entries)
    assert list(index.member) == [0, 1, 2, 3, 4]


def test_a_waiting_tail_wakes_at_a_commit(
    replay: RedisReplay, new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    other = new_replay()
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    timer = threading.Timer(0.1, lambda: other.commit([(name, scores())]))
    timer.start()
    assert len(replay.tail(START, max_entries=9, block_s=5)) == 1
    timer.join()


def test_an_index_rebuilt_from_the_log_equals_the_one_that_grew(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay, grown = new_replay(capacity_records=5), LogIndex(group_size=2)
    put(replay, [make_group(ticket) for ticket in range(6)])
    while records := claim(replay, 3):
        replay.fail(records.pop().record_id, "boom", retry=False)
        replay.commit([(r.record_id, scores(r.ticket)) for r in records])
        grown.extend(replay.tail(grown.position, max_entries=100))
    rebuilt = LogIndex(group_size=2)
    rebuilt.extend(new_replay().tail(START, max_entries=100))
    assert unplaced(rebuilt) == unplaced(grown)
    assert rebuilt.position == grown.position


def unplaced(index: LogIndex) -> list[IndexEntry]:
    """All entries, without what tells in which order several servers were read."""
    return [dataclasses.replace(e, position=START) for e in index.entries(range(len(index)))]


def test_progress_counts_tickets_whose_records_are_all_terminal(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0), make_group(1)])
    first, second, third, _ = (record.record_id for record in claim(replay))
    replay.commit([(first, scores()), (third, scores())])
    assert replay.counters().progress == 0
    replay.fail(second, "boom", retry=False)
    assert replay.counters().progress == 1
