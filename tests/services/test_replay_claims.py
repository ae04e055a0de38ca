"""What a replay promises of claims: nobody else holds them, and a dead server's are taken over."""

import threading
import time

import pytest

from buffer.redis_replay import RedisReplay
from tests.services.replay_calls import (
    LEASE_S,
    SHORT_S,
    MakeGroup,
    MakeScores,
    NewReplay,
    assert_balanced,
    claim,
    issue,
    put,
)

pytestmark = pytest.mark.redis


def test_a_claim_is_empty_after_its_wait(replay: RedisReplay) -> None:
    started = time.monotonic()
    assert replay.claim("a", max_records=1, block_s=0.2, lease_s=LEASE_S) == []
    assert 0.15 < time.monotonic() - started < LEASE_S


def test_a_wait_may_be_longer_than_the_timeout_of_the_socket(new_replay: NewReplay) -> None:
    impatient = new_replay(timeout_s=0.2)
    assert impatient.claim("a", max_records=1, block_s=0.5, lease_s=LEASE_S) == []


def test_a_waiting_claim_wakes_when_a_group_is_put(
    replay: RedisReplay, new_replay: NewReplay, make_group: MakeGroup
) -> None:
    other = new_replay()
    issue(replay, 1)
    timer = threading.Timer(0.1, lambda: other.put_group(0, make_group(0)))
    timer.start()
    found = replay.claim("a", max_records=2, block_s=60, lease_s=LEASE_S)
    timer.join()
    assert [record.member for record in found] == [0, 1]


def test_two_servers_never_hold_the_same_record(replay: RedisReplay, make_group: MakeGroup) -> None:
    put(replay, [make_group(0, size=4)])
    first, second = claim(replay, 3, "a"), claim(replay, 3, "b")
    assert [len(first), len(second)] == [3, 1]
    assert not {r.record_id for r in first} & {r.record_id for r in second}


def test_the_claims_of_a_dead_server_are_taken_over(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    claim(replay, owner="dies")
    time.sleep(2 * SHORT_S)
    found = replay.claim("lives", max_records=9, block_s=0, lease_s=SHORT_S)
    assert [record.member for record in found] == [0, 1]


def test_a_claim_that_is_renewed_is_not_taken_over(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay, owner="slow")]
    for _ in range(4):
        time.sleep(5 * SHORT_S)
        assert replay.renew_claims("slow", names) == 2
        assert replay.claim("quick", max_records=9, block_s=0, lease_s=10 * SHORT_S) == []


def test_a_claim_that_another_took_over_is_not_renewed(
    replay: RedisReplay, new_replay: NewReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay, owner="slow")]
    time.sleep(2 * SHORT_S)
    new_replay().claim("quick", max_records=1, block_s=0, lease_s=SHORT_S)
    assert replay.renew_claims("slow", names) == 1


def test_a_late_failure_does_not_end_a_claim_that_another_took_over(
    replay: RedisReplay, new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay, owner="slow")]
    time.sleep(2 * SHORT_S)
    quick = new_replay()
    taken = quick.claim("quick", max_records=9, block_s=0, lease_s=SHORT_S)
    assert [record.record_id for record in taken] == names
    assert not replay.fail(names[0], "boom", retry=True)
    assert replay.unclaim(names[1:]) == 0
    assert replay.counters().retried == len(names)  # the takeover's alone
    assert quick.renew_claims("quick", names) == len(names)
    assert quick.commit([(name, scores()) for name in names], "quick") == len(names)


def test_records_given_back_are_handed_out_again_without_an_attempt(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    for _ in range(10):
        names = [record.record_id for record in claim(replay)]
        assert replay.unclaim(names) == 2
        assert replay.unclaim(names) == 0
    assert replay.counters().failed == 0
    assert replay.counters().retried == 0
    assert_balanced(replay)
