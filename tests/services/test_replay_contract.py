"""What `buffer.replay.Replay` promises, on a real server."""

import copy
import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from buffer.connection import check_connection, connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayAccessDenied, ReplayFull, ReplayUnavailable
from buffer.index import LogIndex
from buffer.records import START, EvictedEntry, FailedEntry, IndexEntry, Record, Scores
from buffer.redis_replay import RedisReplay, ReplaySettings

pytestmark = pytest.mark.redis

NewReplay = Callable[..., RedisReplay]
MakeGroup = Callable[..., list[Record]]
MakeScores = Callable[..., Scores]

LEASE_S = 30.0
SHORT_S = 0.05


def issue(replay: RedisReplay, count: int, version: int = 0) -> None:
    """Admit and lease `count` tickets."""
    replay.admit(limit=replay.counters().admitted + count, policy_version=version)
    for _ in range(count):
        assert replay.lease_ticket("sampler", lease_s=LEASE_S) is not None


def put(replay: RedisReplay, groups: list[list[Record]]) -> None:
    """Issue and put groups whose tickets are the next ones."""
    issue(replay, len(groups))
    for group in groups:
        assert replay.put_group(group[0].ticket, group)


def claim(replay: RedisReplay, max_records: int = 100, owner: str = "server") -> list[Record]:
    return replay.claim(owner, max_records=max_records, block_s=0, lease_s=LEASE_S)


def assert_balanced(replay: RedisReplay) -> None:
    now = replay.counters()
    assert now.issued_records == now.committed + now.failed + now.pending
    assert now.issued == now.leased + now.open_tickets + now.progress
    assert now.committed == now.live + now.evicted


# Tickets


def test_no_ticket_is_issued_before_one_is_admitted(replay: RedisReplay) -> None:
    assert replay.lease_ticket("a", lease_s=LEASE_S) is None


def test_tickets_come_in_order_up_to_the_limit(replay: RedisReplay) -> None:
    replay.admit(limit=2, policy_version=0)
    issued = [replay.lease_ticket("a", lease_s=LEASE_S) for _ in range(3)]
    assert [ticket and ticket.number for ticket in issued] == [0, 1, None]


def test_a_ticket_has_the_version_of_the_admission_that_first_covered_it(
    replay: RedisReplay,
) -> None:
    replay.admit(limit=1, policy_version=3)
    replay.admit(limit=3, policy_version=7)
    replay.admit(limit=2, policy_version=9)
    issued = [replay.lease_ticket("a", lease_s=LEASE_S) for _ in range(3)]
    assert [ticket and ticket.policy_version for ticket in issued] == [3, 7, 7]


def test_an_expired_ticket_is_issued_again_with_its_first_version(replay: RedisReplay) -> None:
    replay.admit(limit=2, policy_version=3)
    dying = replay.lease_ticket("dies", lease_s=LEASE_S)
    replay.lease_ticket("lives", lease_s=LEASE_S)
    assert dying is not None
    replay.renew_ticket(dying, lease_s=SHORT_S)
    replay.admit(limit=9, policy_version=8)
    time.sleep(2 * SHORT_S)
    again = replay.lease_ticket("other", lease_s=LEASE_S)
    assert again is not None
    assert (again.number, again.policy_version) == (0, 3)


def test_the_lowest_expired_ticket_comes_first(replay: RedisReplay) -> None:
    replay.admit(limit=12, policy_version=0)
    for _ in range(12):
        replay.lease_ticket("dies", lease_s=SHORT_S)
    time.sleep(2 * SHORT_S)
    issued = [replay.lease_ticket("other", lease_s=LEASE_S) for _ in range(12)]
    assert [ticket and ticket.number for ticket in issued] == list(range(12))


def test_a_renewed_lease_does_not_expire(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    ticket = replay.lease_ticket("a", lease_s=SHORT_S)
    assert ticket is not None
    assert replay.renew_ticket(ticket, lease_s=LEASE_S)
    time.sleep(2 * SHORT_S)
    assert replay.lease_ticket("b", lease_s=LEASE_S) is None


def test_a_lease_that_another_took_over_cannot_be_renewed(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    slow = replay.lease_ticket("slow", lease_s=SHORT_S)
    time.sleep(2 * SHORT_S)
    assert slow is not None
    assert replay.lease_ticket("quick", lease_s=LEASE_S) is not None
    assert not replay.renew_ticket(slow, lease_s=LEASE_S)


def test_a_returned_ticket_is_issued_at_once(replay: RedisReplay) -> None:
    replay.admit(limit=2, policy_version=0)
    first = replay.lease_ticket("a", lease_s=LEASE_S)
    assert first is not None
    replay.return_ticket(first)
    again = replay.lease_ticket("b", lease_s=LEASE_S)
    assert again is not None
    assert again.number == 0


def test_a_lease_command_sent_twice_issues_one_ticket(replay: RedisReplay) -> None:
    replay.admit(limit=5, policy_version=0)
    assert replay._run("lease", "a/1", 30000) == replay._run("lease", "a/1", 30000)


def test_skipped_tickets_are_never_issued(replay: RedisReplay) -> None:
    replay.skip_to(40)
    replay.admit(limit=41, policy_version=5)
    ticket = replay.lease_ticket("a", lease_s=LEASE_S)
    assert ticket is not None
    assert (ticket.number, ticket.policy_version) == (40, 5)


# Groups


def test_a_group_comes_back_bit_for_bit(replay: RedisReplay, make_group: MakeGroup) -> None:
    (sent, _) = group = make_group(0)
    put(replay, [group])
    found = claim(replay)[0]
    assert all(map(np.array_equal, found.latents, sent.latents))
    for field in dataclasses.fields(Record):
        assert field.name == "latents" or getattr(found, field.name) == getattr(sent, field.name)


def test_a_group_is_stored_once(replay: RedisReplay, make_group: MakeGroup) -> None:
    put(replay, [make_group(0)])
    assert not replay.put_group(0, make_group(0))
    assert replay.counters().issued_records == 2


def test_a_late_group_is_dropped_after_its_records_are_committed(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0)])
    replay.commit([(record.record_id, scores()) for record in claim(replay)])
    assert not replay.put_group(0, make_group(0))


def test_a_put_ends_the_lease(replay: RedisReplay, make_group: MakeGroup) -> None:
    replay.admit(limit=1, policy_version=0)
    ticket = replay.lease_ticket("a", lease_s=SHORT_S)
    assert ticket is not None
    replay.put_group(0, make_group(0))
    time.sleep(2 * SHORT_S)
    assert replay.lease_ticket("b", lease_s=LEASE_S) is None
    assert not replay.renew_ticket(ticket, lease_s=LEASE_S)


def test_a_group_of_a_ticket_never_issued_is_refused(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    assert not replay.put_group(0, make_group(0))


def test_a_group_with_a_missing_member_is_an_error(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    with pytest.raises(ValueError, match="members 0, 1"):
        replay.put_group(0, make_group(0, size=3)[1:])


# Scoring


def test_a_claim_is_empty_after_its_wait(replay: RedisReplay) -> None:
    started = time.monotonic()
    assert replay.claim("a", max_records=1, block_s=0.2, lease_s=LEASE_S) == []
    assert 0.15 < time.monotonic() - started < 2


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
    found = replay.claim("a", max_records=2, block_s=5, lease_s=LEASE_S)
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


def test_a_claim_that_is_renewed_is_not_taken_over(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay, owner="slow")]
    for _ in range(4):
        time.sleep(SHORT_S)
        assert replay.renew_claims("slow", names) == 2
        assert replay.claim("quick", max_records=9, block_s=0, lease_s=2 * SHORT_S) == []


def test_a_claim_that_another_took_over_is_not_renewed(
    replay: RedisReplay, new_replay: NewReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay, owner="slow")]
    time.sleep(2 * SHORT_S)
    new_replay().claim("quick", max_records=1, block_s=0, lease_s=SHORT_S)
    assert replay.renew_claims("slow", names) == 1


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


def test_a_released_record_that_is_damaged_is_quarantined_again(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    replay._client.hset(replay._record_prefix + "0000000000.000", "h", b"junk")
    assert claim(replay) == []
    assert replay.quarantined(9)[0].size_bytes > 0
    assert replay.release(["0000000000.000"]) == 1
    assert claim(replay) == []
    assert replay.counters().failed == 1
    assert_balanced(replay)


def test_a_committed_record_is_in_the_log_with_its_rewards(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1, version=4)])
    replay.commit([(claim(replay)[0].record_id, Scores({"a": (1.0, 2.0), "b": (3.0, 4.0)}))])
    [entry] = replay.tail(START, max_entries=10)
    assert isinstance(entry, IndexEntry)
    assert entry.rewards == {"a": (1.0, 2.0), "b": (3.0, 4.0)}
    assert (entry.record_id, entry.prompt, entry.policy_version) == (
        "0000000000.000",
        "prompt 0",
        4,
    )


def test_a_commit_sent_twice_counts_once(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay)]
    assert replay.commit([(name, scores(1)) for name in names]) == 2
    assert replay.commit([(name, scores(2)) for name in names]) == 0
    assert len(replay.tail(START, max_entries=10)) == 2
    assert_balanced(replay)


def test_a_commit_during_a_stall_of_the_server_counts_once(
    server: EmbeddedServer, new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    # The client gives up waiting and sends the same command again: the server applies both.
    replay = new_replay(timeout_s=0.2)
    put(replay, [make_group(0)])
    scored = [(record.record_id, scores()) for record in claim(replay)]
    with connect(server.url, timeout_s=5) as admin:
        before = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
        os.kill(server.pid, signal.SIGSTOP)
        timer = threading.Timer(0.5, lambda: os.kill(server.pid, signal.SIGCONT))
        timer.start()
        replay.commit(scored)
        timer.join()
        assert admin.info("commandstats")["cmdstat_evalsha"]["calls"] >= before + 2
    assert replay.counters().committed == 2
    assert len(replay.tail(START, max_entries=10)) == 2


def test_a_commit_of_an_unknown_record_does_nothing(
    replay: RedisReplay, scores: MakeScores
) -> None:
    assert replay.commit([("0000000009.000", scores())]) == 0


def test_a_wrong_number_of_rewards_applies_nothing(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0)])
    first, second = (record.record_id for record in claim(replay))
    with pytest.raises(ValueError, match="2 scored latents"):
        replay.commit([(first, scores()), (second, Scores({"jpeg": (1.0,)}))])
    assert replay.counters().committed == 0


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


def test_a_failure_sent_twice_counts_one_attempt(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    entry = replay._claims[name]
    replay._fail(name, "boom", retry=True, entry=entry)
    replay._fail(name, "boom", retry=True, entry=entry)
    assert replay.counters().retried == 1


def test_a_commit_after_a_quarantine_changes_nothing(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    replay.fail(name, "boom", retry=False)
    assert replay.commit([(name, scores())]) == 0
    assert replay.counters().failed == 1


def test_a_late_commit_wins_over_a_retry(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0, size=1)])
    name = claim(replay)[0].record_id
    replay.fail(name, "boom", retry=True)
    assert replay.commit([(name, scores())]) == 1
    assert claim(replay) == []


@pytest.mark.parametrize("damage", [{"h": b"junk"}, {"1": b""}, {"extra": b"x"}])
def test_a_damaged_record_is_quarantined_and_its_neighbour_served(
    damage: dict[str, bytes], replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    for field, data in damage.items():
        replay._client.hset(replay._record_prefix + "0000000000.000", field, data)
    assert [record.member for record in claim(replay)] == [1]
    assert replay.quarantined(1)[0].reason.startswith("unreadable record")


def test_a_record_whose_payload_vanished_is_quarantined(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0, size=1)])
    replay._client.delete(replay._record_prefix + "0000000000.000")
    assert claim(replay) == []
    assert replay.counters().failed == 1


# Learner


def test_one_slice_is_read_without_the_trajectory(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    (first, second) = group = make_group(0)
    put(replay, [group])
    found = replay.read_latents([(second.record_id, 0), (first.record_id, 1)])
    assert found[0] is not None
    assert found[1] is not None
    assert np.array_equal(found[0], second.latents[0])
    assert np.array_equal(found[1], first.latents[1])


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
    assert rebuilt.entries(range(len(rebuilt))) == grown.entries(range(len(grown)))
    assert rebuilt.position == grown.position


def test_progress_counts_tickets_whose_records_are_all_terminal(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0), make_group(1)])
    first, second, third, _ = (record.record_id for record in claim(replay))
    replay.commit([(first, scores()), (third, scores())])
    assert replay.counters().progress == 0
    replay.fail(second, "boom", retry=False)
    assert replay.counters().progress == 1


def test_a_replay_that_was_handed_on_reaches_the_same_run(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    # deepcopy goes the way that Ray takes to another process: __reduce__.
    put(replay, [make_group(0)])
    other = copy.deepcopy(replay)
    assert len(claim(other)) == 2
    other.close()


def test_runs_do_not_see_each_other(
    server: EmbeddedServer, replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    other = RedisReplay.connect(ReplaySettings(url=server.url, run="other", capacity_records=9))
    assert claim(other) == []
    other.erase()
    other.close()
    assert len(claim(replay)) == 2


def test_erasing_a_run_leaves_no_key(
    server: EmbeddedServer, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = RedisReplay.connect(ReplaySettings(url=server.url, run="gone", capacity_records=9))
    put(replay, [make_group(0)])
    replay.commit([(claim(replay, 1)[0].record_id, scores())])
    assert replay.erase() > 5
    assert list(replay._client.scan_iter("fleetune:{gone}:*")) == []
    replay.close()


def test_records_survive_crashes_of_everybody_and_count_once(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    """Samplers and reward servers that forget half of what they do, at random moments."""
    tickets, size, control = 12, 3, new_replay()
    control.admit(limit=tickets, policy_version=0)
    stop = threading.Event()

    def sample(seed: int) -> None:
        replay, rng = new_replay(), random.Random(seed)
        while not stop.is_set():
            ticket = replay.lease_ticket(f"s{seed}", lease_s=SHORT_S)
            time.sleep(rng.random() * 2 * SHORT_S)
            if ticket is not None and rng.random() < 0.6:
                replay.put_group(ticket.number, make_group(ticket.number, size=size))

    def score(seed: int) -> None:
        # As many attempts as it takes: how a worn-out record ends is another test.
        settings = dataclasses.replace(control.settings, max_attempts=1000)
        replay, rng = RedisReplay(settings), random.Random(seed)
        while not stop.is_set():
            records = replay.claim(f"r{seed}", max_records=4, block_s=SHORT_S, lease_s=SHORT_S)
            time.sleep(rng.random() * 2 * SHORT_S)
            if rng.random() < 0.6:
                replay.commit([(r.record_id, scores(r.ticket)) for r in records])
        replay.close()

    workers = [threading.Thread(target=sample, args=(seed,)) for seed in range(3)]
    workers += [threading.Thread(target=score, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 30
    while control.counters().progress < tickets and time.monotonic() < deadline:
        time.sleep(SHORT_S)
        assert_balanced(control)
    stop.set()
    for worker in workers:
        worker.join()
    entries = control.tail(START, max_entries=1000)
    names = [entry.record_id for entry in entries if isinstance(entry, IndexEntry)]
    assert sorted(names) == [r.record_id for t in range(tickets) for r in make_group(t, size=size)]


# Outages


def test_an_outage_is_ridden_out(tmp_path: Path, make_group: MakeGroup, scores: MakeScores) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=20)
        replay = RedisReplay.connect(settings)
        put(replay, [make_group(0)])
        names = [record.record_id for record in claim(replay)]
        os.kill(server.pid, signal.SIGKILL)
        committing = threading.Thread(
            target=lambda: replay.commit([(name, scores()) for name in names])
        )
        committing.start()
        time.sleep(0.5)
        assert server.revive()
        committing.join()
        assert len(replay.tail(START, max_entries=9)) == 2
        assert_balanced(replay)
        replay.close()


def test_an_outage_that_lasts_longer_is_an_error(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=0.5)
        replay = RedisReplay.connect(settings)
        os.kill(server.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(ReplayUnavailable):
            replay.counters()
        assert 0.5 < time.monotonic() - begun < 10
        replay.close()


def test_a_nearly_full_server_takes_commits_but_no_new_groups(
    make_group: MakeGroup, scores: MakeScores
) -> None:
    with EmbeddedServer() as server:
        settings = ReplaySettings(url=server.url, run="full", capacity_records=2)
        replay = RedisReplay.connect(settings)
        put(replay, [make_group(0)])
        issue(replay, 1)
        used = replay._client.info("memory")["used_memory"]
        replay._client.config_set("maxmemory", int(used / 0.95))
        with pytest.raises(ReplayFull, match="maxmemory"):
            replay.put_group(1, make_group(1))
        assert replay.commit([(record.record_id, scores()) for record in claim(replay)]) == 2
        replay._client.config_set("maxmemory", 2 * used)
        assert replay.put_group(1, make_group(1))
        replay.close()


# Errors


def test_nobody_at_the_url_is_unavailable() -> None:
    with pytest.raises(ReplayUnavailable, match=r"127\.0\.0\.1:1/"):
        check_connection("redis://127.0.0.1:1/0", timeout_s=1)


@pytest.mark.parametrize("step", ["lease", "put", "claim again", "commit", "fail"])
def test_a_full_server_refuses_a_step_and_nothing_of_it_happens(
    step: str, make_group: MakeGroup, scores: MakeScores
) -> None:
    with EmbeddedServer() as server:
        replay = RedisReplay.connect(ReplaySettings(url=server.url, run="full", capacity_records=2))
        put(replay, [make_group(0)])
        name = claim(replay)[0].record_id
        replay.admit(limit=3, policy_version=0)
        replay.lease_ticket("a", lease_s=LEASE_S)
        steps = {
            "lease": lambda: replay.lease_ticket("a", lease_s=LEASE_S),
            "put": lambda: replay.put_group(1, make_group(1)),
            "claim again": lambda: replay.claim("b", max_records=9, block_s=0, lease_s=0.001),
            "commit": lambda: replay.commit([(name, scores())]),
            "fail": lambda: replay.fail(name, "boom", retry=True),
        }
        time.sleep(0.01)  # the claims are now older than the lease of "claim again"
        before = replay.counters()
        replay._client.config_set("maxmemory", "1")
        with pytest.raises(ReplayFull, match="maxmemory"):
            steps[step]()
        assert replay.counters() == before
        replay._client.config_set("maxmemory", "0")
        steps[step]()
        assert replay.counters() != before
        replay.close()


def test_a_wrong_password_is_denied_and_not_shown() -> None:
    with EmbeddedServer(transport="tcp") as server:
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied) as caught:
            check_connection(f"redis://:guess-me@{address}", timeout_s=2)
    assert "guess-me" not in str(caught.value)


def test_a_user_without_scripts_is_denied_before_the_run() -> None:
    with EmbeddedServer(transport="tcp") as server:
        admin = connect(server.url, timeout_s=2)
        admin.acl_setuser("weak", enabled=True, passwords=["+pw"], commands=["+ping", "+info"])
        admin.close()
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied, match="eval"):
            check_connection(f"redis://weak:pw@{address}", timeout_s=2)
