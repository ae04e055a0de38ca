"""What a replay promises of failures: attempts, quarantine and release."""

import time

import pytest

from buffer.index import LogIndex
from buffer.records import START, FailedEntry
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import MOST_QUARANTINED
from tests.services.replay_calls import (
    SHORT_S,
    MakeGroup,
    MakeScores,
    assert_balanced,
    claim,
    issue,
    one_server,
    put,
)

pytestmark = pytest.mark.redis


def test_a_record_that_kills_every_server_is_quarantined(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    for _ in range(4):
        replay.claim("dies", max_records=1, block_s=0, lease_s=SHORT_S)
        time.sleep(2 * SHORT_S)
    [failed] = replay.quarantined(10)
    assert failed.record_id == "0000000000.000"
    assert "expired without an answer" in failed.reason
    assert_balanced(replay)


def test_a_failed_record_is_handed_out_again(replay: RedisReplay, make_group: MakeGroup) -> None:
    put(replay, [make_group(0, size=1)])
    assert not replay.fail(claim(replay)[0].record_id, "boom", retry=True)
    assert [record.member for record in claim(replay)] == [0]


def test_a_record_is_handed_out_as_often_as_allowed_and_then_quarantined(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    outcomes = [replay.fail(claim(replay)[0].record_id, "boom", retry=True) for _ in range(3)]
    assert outcomes == [False, False, True]
    assert claim(replay) == []
    assert [(q.record_id, q.reason) for q in replay.quarantined(10)] == [("0000000000.000", "boom")]


def test_a_quarantined_record_is_in_the_log_without_a_number(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    replay.fail(claim(replay)[0].record_id, "not an image: é" + "x" * 9999, retry=False)
    [entry] = replay.tail(START, max_entries=10)
    assert isinstance(entry, FailedEntry)
    assert entry.reason.startswith("not an image: é")


@one_server
def test_a_failure_sent_twice_counts_one_attempt(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    held = replay._claims[name]
    for _ in range(2):
        replay._fail(name, "boom", retry=True, claim=held)
    assert replay.counters().retried == 1


@one_server
def test_of_more_than_a_thousand_failed_records_the_oldest_are_forgotten_with_their_latents(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(ticket, size=59) for ticket in range(17)])
    names = [record.record_id for record in claim(replay, max_records=1003)]
    for name in names:
        replay.fail(name, "boom", retry=False)
    link = replay._link
    kept = sorted(link.client.scan_iter(link.record_key("*"), count=2000))
    assert kept == [link.record_key(name).encode() for name in names[3:]]
    told = [link.client.hlen(link.key(name)) for name in ("reasons", "sizes")]
    assert [len(replay.quarantined(2000)), *told] == [1000] * 3


def test_a_member_that_could_not_be_sampled_is_in_quarantine_from_the_start(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    issue(replay, 2)
    records, failed = make_group(0, size=3)[:2], {2: "not finite"}
    assert replay.put_group(0, records, failed)
    assert not replay.put_group(0, records, failed)
    assert replay.put_group(1, [], dict.fromkeys(range(3), "not finite"))
    assert_balanced(replay)
    assert (replay.counters().failed, replay.counters().pending) == (4, 2)
    claimed = claim(replay)
    assert [record.member for record in claimed] == [0, 1]
    replay.commit([(record.record_id, scores()) for record in claimed])
    told = {name.record_id: (name.reason, name.size_bytes) for name in replay.quarantined()}
    assert told["0000000000.002"] == ("not finite", 0)
    assert replay.release(list(told)) == 0
    index = LogIndex(group_size=3)
    index.extend(replay.tail(START, max_entries=9))
    assert index.finished(0, 2)
    assert replay.counters().progress == 2
    assert_balanced(replay)


def test_a_group_without_one_of_its_members_is_refused(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    issue(replay, 1)
    for records, failed in (([], {}), (make_group(0)[:1], {2: "x"}), (make_group(0), {1: "x"})):
        with pytest.raises(ValueError, match="ticket 0 needs members"):
            replay.put_group(0, records, failed)


@one_server
@pytest.mark.parametrize("damage", [{"h": b"junk"}, {"1": b""}, {"extra": b"x"}])
def test_a_damaged_record_is_quarantined_and_its_neighbour_served(
    damage: dict[str, bytes], replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    for field, data in damage.items():
        replay._link.client.hset(replay._link.record_key("0000000000.000"), field, data)
    assert [record.member for record in claim(replay)] == [1]
    assert replay.quarantined(1)[0].reason.startswith("unreadable record")


@one_server
def test_a_record_whose_payload_vanished_is_quarantined(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    replay._link.client.delete(replay._link.record_key("0000000000.000"))
    assert claim(replay) == []
    assert replay.counters().failed == 1


def test_a_released_record_is_scored_like_any_other(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0)])
    bad, good = (record.record_id for record in claim(replay))
    replay.fail(bad, "boom", retry=False)
    replay.commit([(good, scores())])
    index = LogIndex(group_size=2)
    index.extend(replay.tail(START, max_entries=9))
    assert replay.release([bad, good]) == 1
    assert replay.release([bad]) == 0
    assert replay.quarantined(9) == []
    assert_balanced(replay)
    [again] = claim(replay)
    replay.commit([(again.record_id, scores())])
    index.extend(replay.tail(index.position, max_entries=9))
    assert index.groups().tolist() == [[0, 1]]
    assert replay.counters().failed == 0
    assert_balanced(replay)


@one_server
def test_a_released_record_that_is_damaged_is_quarantined_again(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    replay._link.client.hset(replay._link.record_key("0000000000.000"), "h", b"junk")
    assert claim(replay) == []
    assert replay.quarantined(9)[0].size_bytes > 0
    assert replay.release(["0000000000.000"]) == 1
    assert claim(replay) == []
    assert replay.counters().failed == 1
    assert_balanced(replay)


@one_server
def test_the_oldest_of_too_many_quarantined_records_go_with_their_latents(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(ticket, size=100) for ticket in range(MOST_QUARANTINED // 100 + 1)])
    records = claim(replay, max_records=MOST_QUARANTINED + 2)
    for record in records:
        replay.fail(record.record_id, "boom", retry=False)
    names = [record.record_id for record in records]
    assert {failed.record_id for failed in replay.quarantined()} == set(names[2:])
    assert len(replay.quarantined(3)) == 3
    assert replay.release(names[:3]) == 1
    assert replay.read_latents([(name, 0) for name in names[:2]]) == [None, None]
