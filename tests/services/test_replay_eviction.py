"""What a replay keeps and what it removes: capacity, priorities and consumption."""

from dataclasses import replace

import pytest

from buffer.index import LogIndex
from buffer.records import START, EvictedEntry
from buffer.redis_replay import RedisReplay
from buffer.sharded_replay import connect_replay
from tests.services.replay_calls import (
    MakeGroup,
    MakeScores,
    NewReplay,
    assert_balanced,
    claim,
    issue,
    one_server,
    put,
)

pytestmark = pytest.mark.redis


@one_server
def test_the_oldest_committed_records_are_evicted_above_the_capacity(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=3)
    put(replay, [make_group(0), make_group(1), make_group(2)])
    names = [record.record_id for record in claim(replay)]
    replay.commit([(name, scores()) for name in names])
    found = replay.read_latents([(name, 0) for name in names])
    assert [latent is not None for latent in found] == [False] * 3 + [True] * 3
    assert_balanced(replay)


def test_the_log_tells_what_was_evicted(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=1)
    put(replay, [make_group(0)])
    replay.commit([(record.record_id, scores()) for record in claim(replay)])
    entries = replay.tail(START, max_entries=10)
    assert isinstance(entries[-1], EvictedEntry)
    assert entries[-1].record_ids == ("0000000000.000",)


@one_server
def test_the_bytes_of_live_records_stay_within_their_budget(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    probe = new_replay()
    put(probe, [make_group(0)])
    probe.commit([(record.record_id, scores()) for record in claim(probe)])
    per_record = probe.counters().live_bytes // 2
    assert 2 * 4 * 8 * 8 * 2 < per_record < 2 * 4 * 8 * 8 * 2 + 200

    replay = new_replay(capacity_bytes=3 * per_record + per_record // 2)
    issue(replay, 2)
    for ticket in (1, 2):
        replay.put_group(ticket, make_group(ticket))
        replay.commit([(record.record_id, scores()) for record in claim(replay)])
    now = replay.counters()
    assert (now.live, now.live_bytes) == (3, 3 * per_record)
    assert_balanced(replay)


@one_server
def test_a_record_committed_late_is_removed_before_those_of_younger_tickets(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=2)
    put(replay, [make_group(ticket, size=1) for ticket in range(3)])
    first, second, third = (record.record_id for record in claim(replay))
    for name in (third, second, first):
        replay.commit([(name, scores())])
    found = replay.read_latents([(name, 0) for name in (first, second, third)])
    assert [latent is not None for latent in found] == [False, True, True]


@one_server
def test_the_records_of_lowest_priority_are_removed_first_and_of_equals_the_oldest(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=3, remover="lowest_priority")
    put(replay, [make_group(ticket, size=1) for ticket in range(5)])
    names = [record.record_id for record in claim(replay)]
    replay.commit([(name, scores()) for name in names[:3]])
    replay.set_priorities({names[0]: 2.5, names[2]: 0.5}, generation=1)
    replay.commit([(name, scores()) for name in names[3:]])
    entries = replay.tail(START, max_entries=10)
    gone = [name for e in entries if isinstance(e, EvictedEntry) for name in e.record_ids]
    assert gone == [names[2], names[1]]
    assert_balanced(replay)


def test_a_priority_of_an_older_generation_changes_nothing(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    replay.commit([(name, scores())])
    assert replay.set_priorities({name: 3.0}, generation=7) == 1
    assert replay.set_priorities({name: 9.0}, generation=7) == 0
    assert replay.set_priorities({name: 9.0}, generation=6) == 0
    assert replay.priorities() == {name: 3.0}


def test_a_priority_does_not_bring_an_evicted_record_back(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    replay.commit([(name, scores())])
    replay.consume(1)
    assert replay.set_priorities({name: 3.0}, generation=1) == 0
    assert replay.priorities() == {}


@pytest.mark.parametrize("priority", [-1.0, float("nan"), float("inf")])
def test_a_priority_that_cannot_be_drawn_by_is_an_error(
    priority: float, replay: RedisReplay
) -> None:
    with pytest.raises(ValueError, match="priority"):
        replay.set_priorities({"0000000000.000": priority}, generation=1)


def test_consumed_records_are_gone_and_the_others_stay(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(ticket) for ticket in range(3)])
    replay.commit([(record.record_id, scores()) for record in claim(replay)])
    assert replay.consume(2) == 4
    assert replay.consume(2) == 0
    index = LogIndex(group_size=2)
    index.extend(replay.tail(START, max_entries=100))
    assert index.ticket.tolist() == [2, 2]
    assert index.finished(0, 3)
    assert replay.counters().live_bytes > 0
    assert_balanced(replay)


def test_pending_records_are_never_evicted(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=1)
    put(replay, [make_group(0, size=4)])
    for record in claim(replay, 2):
        replay.commit([(record.record_id, scores())])
    assert len(claim(replay)) == 2


def test_a_smaller_capacity_takes_effect_when_asked_and_not_only_with_the_next_commit(
    new_replay: NewReplay,
    make_group: MakeGroup,
    scores: MakeScores,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("buffer.redis_replay._CHUNK", 2)
    replay = new_replay()
    put(replay, [make_group(ticket) for ticket in range(6)])
    names = sorted(record.record_id for record in claim(replay))
    replay.commit([(name, scores()) for name in names])
    assert replay.shrink() == 0
    smaller = connect_replay(replace(replay.settings, capacity_records=3))
    assert smaller.shrink() == len(names) - 3
    assert smaller.shrink() == 0
    found = smaller.read_latents([(name, 0) for name in names])
    # Each server keeps its share, and the newest of all is among them.
    assert sum(latent is not None for latent in found) == 3
    assert found[-1] is not None
    assert_balanced(smaller)
    smaller.close()
