"""What a replay promises of groups: stored once, whole, and read back bit for bit."""

import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from buffer.errors import ReplayError, ReplayFull
from buffer.records import Record
from buffer.redis_replay import RedisReplay
from tests.services.replay_calls import (
    LEASE_S,
    SHORT_S,
    MakeGroup,
    MakeScores,
    claim,
    issue,
    one_server,
    put,
)

pytestmark = pytest.mark.redis


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


def staged(replay: RedisReplay) -> list[bytes]:
    return list(replay._link.client.scan_iter("*:record:staged:*"))


@one_server
def test_a_group_that_is_not_taken_leaves_nothing_behind(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    replay.put_group(0, make_group(0))
    replay.put_group(7, make_group(7))
    assert staged(replay) == []


@one_server
def test_what_a_server_took_of_a_group_before_it_was_full_goes_again(
    replay: RedisReplay, make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(replay, 1)
    stage = RedisReplay._staged

    def stage_one_and_fail(self: RedisReplay, records: Any, key_of: dict[str, str]) -> list[Any]:
        stage(self, records[:1], key_of)
        raise ReplayFull("no room for the second")

    monkeypatch.setattr(RedisReplay, "_staged", stage_one_and_fail)
    with pytest.raises(ReplayFull):
        replay.put_group(0, make_group(0))
    assert staged(replay) == []


@one_server
def test_the_payloads_of_a_group_that_is_put_stay(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    group = make_group(0)
    put(replay, [group])
    keys = [replay._link.record_key(record.record_id) for record in group]
    assert [replay._link.client.ttl(key) for key in keys] == [-1] * len(group)


@one_server
def test_payloads_of_a_sampler_that_died_before_the_put_expire(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    group = make_group(0)
    keys = [replay._link.record_key(f"staged:call:{record.record_id}") for record in group]
    replay._staged(group, {r.record_id: key for r, key in zip(group, keys, strict=True)})
    assert len(staged(replay)) == 2
    assert all(0 < replay._link.client.ttl(key) <= 600 for key in staged(replay))


def test_a_group_whose_payload_expired_on_the_way_is_not_stored(
    replay: RedisReplay, make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    issue(replay, 1)
    stage = RedisReplay._staged

    def stage_and_lose(self: RedisReplay, records: Any, key_of: dict[str, str]) -> list[Any]:
        words = stage(self, records, key_of)
        self._link.drop(list(key_of.values()))
        return words

    monkeypatch.setattr(RedisReplay, "_staged", stage_and_lose)
    with pytest.raises(ReplayError, match=r"LOST the payload of 0000000000\.000"):
        replay.put_group(0, make_group(0))
    assert (replay.counters().issued_records, claim(replay)) == (0, [])
    monkeypatch.undo()
    assert replay.put_group(0, make_group(0))
