"""A server whose clock stepped back: what was held until then does not wait for it to catch up."""

import struct
from typing import Any

import pytest

from buffer.redis_replay import RedisReplay
from tests.services.replay_calls import LEASE_S, MakeGroup, assert_balanced, claim, one_server, put

pytestmark = pytest.mark.redis
STEP_MS = 3_600_000


def crc64(data: bytes) -> int:
    """Of the end of what DUMP gives: polynomial of Jones, reflected."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc


def step_back(replay: RedisReplay) -> None:
    """Every claim was given so much later by the clock."""
    link = replay._link
    described: Any = link.client.xinfo_stream(link.key("pending"), full=True)
    times = {claimed[2] for group in described["groups"] for claimed in group["pending"]}
    dumped = link.client.dump(link.key("pending"))
    assert isinstance(dumped, bytes)
    body = dumped[:-8]
    for at_ms in times:
        body = body.replace(struct.pack("<q", at_ms), struct.pack("<q", at_ms + STEP_MS))
    link.client.restore(link.key("pending"), 0, body + struct.pack("<Q", crc64(body)), replace=True)


def test_the_checksum_is_that_of_redis() -> None:
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA


@one_server
def test_the_ticket_of_a_dead_sampler_is_issued_again(replay: RedisReplay) -> None:
    replay.admit(limit=2, policy_version=3)
    assert replay.lease_ticket("dies", lease_s=LEASE_S) is not None
    held = replay.lease_ticket("lives", lease_s=LEASE_S)
    assert held is not None
    link = replay._link
    link.client.zincrby(link.key("leases"), STEP_MS, "0")
    again = replay.lease_ticket("other", lease_s=LEASE_S)
    assert again is not None
    assert (again.number, again.policy_version) == (0, 3)
    assert replay.lease_ticket("other", lease_s=LEASE_S) is None
    assert replay.renew_ticket(held, lease_s=LEASE_S)


@one_server
def test_a_lease_that_is_renewed_after_the_step_stays_its_holders(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    held = replay.lease_ticket("a", lease_s=LEASE_S)
    assert held is not None
    link = replay._link
    link.client.zincrby(link.key("leases"), STEP_MS, "0")
    assert replay.renew_ticket(held, lease_s=LEASE_S)
    assert replay.lease_ticket("b", lease_s=LEASE_S) is None


@one_server
def test_the_claims_of_a_dead_server_are_taken_over(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0), make_group(1)])
    names = [record.record_id for record in claim(replay, 2, "dies")]
    step_back(replay)
    assert [record.record_id for record in claim(replay, 2, "lives")] == names
    assert len(claim(replay, 9, "lives")) == 2
    assert claim(replay, 9, "other") == []
    assert replay.counters().retried == 2
    assert_balanced(replay)


@one_server
def test_a_claim_that_is_renewed_after_the_step_stays_its_owners(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay, owner="a")]
    step_back(replay)
    assert replay.renew_claims("a", names) == 2
    assert claim(replay, owner="b") == []
