"""What a replay promises of tickets: admitted, leased, renewed, returned and skipped."""

import time

import pytest

from buffer.redis_replay import RedisReplay
from tests.services.replay_calls import LEASE_S, SHORT_S, MakeGroup, one_server

pytestmark = pytest.mark.redis


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


@one_server
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


@one_server
def test_the_lowest_expired_ticket_comes_first(replay: RedisReplay) -> None:
    replay.admit(limit=12, policy_version=0)
    for _ in range(12):
        replay.lease_ticket("dies", lease_s=SHORT_S)
    time.sleep(2 * SHORT_S)
    issued = [replay.lease_ticket("other", lease_s=LEASE_S) for _ in range(12)]
    assert [ticket and ticket.number for ticket in issued] == list(range(12))


def test_a_renewed_lease_does_not_expire(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    ticket = replay.lease_ticket("a", lease_s=10 * SHORT_S)
    assert ticket is not None
    assert replay.renew_ticket(ticket, lease_s=LEASE_S)
    time.sleep(11 * SHORT_S)
    assert replay.lease_ticket("b", lease_s=LEASE_S) is None


def test_a_lease_that_another_took_over_cannot_be_renewed(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    slow = replay.lease_ticket("slow", lease_s=SHORT_S)
    time.sleep(2 * SHORT_S)
    assert slow is not None
    assert replay.lease_ticket("quick", lease_s=LEASE_S) is not None
    assert not replay.renew_ticket(slow, lease_s=LEASE_S)


def test_a_returned_ticket_is_issued_at_once(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=0)
    first = replay.lease_ticket("a", lease_s=LEASE_S)
    assert first is not None
    replay.return_ticket(first)
    again = replay.lease_ticket("b", lease_s=LEASE_S)
    assert again is not None
    assert again.number == 0


@one_server
def test_a_lease_command_sent_twice_issues_one_ticket(replay: RedisReplay) -> None:
    replay.admit(limit=5, policy_version=0)
    assert replay._link.run("lease", "a/1", 30000, 0, 1) == replay._link.run(
        "lease", "a/1", 30000, 0, 1
    )


def test_skipped_tickets_are_never_issued(replay: RedisReplay) -> None:
    replay.skip_to(40)
    replay.admit(limit=41, policy_version=5)
    ticket = replay.lease_ticket("a", lease_s=LEASE_S)
    assert ticket is not None
    assert (ticket.number, ticket.policy_version) == (40, 5)


def test_a_lease_of_a_skipped_ticket_ends_and_its_group_is_dropped(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    replay.admit(limit=2, policy_version=0)
    tickets = [replay.lease_ticket("a", lease_s=LEASE_S) for _ in range(2)]
    held = next(ticket for ticket in tickets if ticket and ticket.number == 0)
    replay.skip_to(1)
    assert not replay.renew_ticket(held, lease_s=LEASE_S)
    assert not replay.put_group(0, make_group(0))
    assert replay.put_group(1, make_group(1))
    now = replay.counters()
    assert (now.issued, now.leased, now.open_tickets, now.progress) == (2, 0, 1, 1)


@one_server
def test_a_lease_command_that_comes_after_the_lease_ran_out_takes_nothing_back(
    replay: RedisReplay,
) -> None:
    replay.admit(limit=2, policy_version=0)
    replay._link.run("lease", "slow/1", 1, 0, 1)
    time.sleep(SHORT_S)
    taken = replay.lease_ticket("quick", lease_s=LEASE_S)
    assert taken is not None
    assert taken.number == 0
    assert replay._link.run("lease", "slow/1", 30000, 0, 1)[0] == 1
    assert replay.renew_ticket(taken, lease_s=LEASE_S)


@one_server
def test_nothing_is_left_of_leases_that_were_put_returned_or_taken_over(
    replay: RedisReplay, make_group: MakeGroup
) -> None:
    replay.admit(limit=1, policy_version=0)
    replay.lease_ticket("dies", lease_s=SHORT_S)
    time.sleep(2 * SHORT_S)
    returned = replay.lease_ticket("returns", lease_s=LEASE_S)
    assert returned is not None
    replay.return_ticket(returned)
    assert replay.lease_ticket("puts", lease_s=LEASE_S) is not None
    replay.put_group(0, make_group(0))
    assert replay._link.client.hgetall(replay._link.key("holders")) == {}
