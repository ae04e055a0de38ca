"""A replay over several servers: which of them is asked, and what they are together."""

import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnfit
from buffer.index import LogIndex
from buffer.records import START
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from buffer.sharded_replay import ShardedReplay, connect_replay
from tests.services.replay_calls import (
    LEASE_S,
    SERVERS,
    MakeGroup,
    MakeScores,
    NewReplay,
    assert_balanced,
    claim,
    leased,
    put,
    several_servers,
)

pytestmark = pytest.mark.redis
FAILING = "0000000004.001"


# Tickets


@several_servers
def test_every_ticket_is_issued_once_to_whoever_asks(new_replay: NewReplay) -> None:
    tickets, issued = 40, []
    new_replay().admit(limit=tickets, policy_version=0)

    def lease_all(replay: ShardedReplay) -> None:
        while (ticket := replay.lease_ticket("a", lease_s=LEASE_S)) is not None:
            issued.append(ticket.number)

    clients = [threading.Thread(target=lease_all, args=(new_replay(),)) for _ in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert sorted(issued) == list(range(tickets))


@several_servers
def test_every_server_is_asked_first_in_its_turn(replay: ShardedReplay) -> None:
    replay.admit(limit=30, policy_version=0)
    assert [number % SERVERS for number in leased(replay, 6)] == [0, 1, 2, 0, 1, 2]


@several_servers
def test_skipped_tickets_are_progress_on_every_server(replay: ShardedReplay) -> None:
    replay.skip_to(40)
    assert replay.counters().progress == 40
    replay.admit(limit=43, policy_version=0)
    assert sorted(leased(replay, 9)) == [40, 41, 42]


@several_servers
def test_skipping_to_a_ticket_again_or_to_an_earlier_one_changes_nothing(
    replay: ShardedReplay,
) -> None:
    replay.skip_to(40)
    before = replay.counters()
    replay.skip_to(40)
    replay.skip_to(7)
    assert replay.counters() == before


# Records


@several_servers
def test_a_group_is_on_the_server_of_its_ticket(
    new_replay: NewReplay, make_group: MakeGroup, urls: list[str]
) -> None:
    replay = new_replay()
    put(replay, [make_group(ticket) for ticket in range(4)])
    held = [RedisReplay(each).counters().issued_records for each in replay.settings.of_shards()]
    assert held == [4, 2, 2]


@several_servers
def test_a_claim_takes_of_all_servers_what_fits(
    replay: ShardedReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(ticket) for ticket in range(3)])
    assert [len(claim(replay, most)) for most in (5, 5)] == [5, 1]


@several_servers
def test_claims_begin_at_another_server_each_time(
    replay: ShardedReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(ticket) for ticket in range(3)])
    assert {claim(replay, 1)[0].ticket for _ in range(3)} == {0, 1, 2}


@several_servers
def test_latents_come_in_the_order_in_which_they_are_asked_for(
    replay: ShardedReplay, make_group: MakeGroup
) -> None:
    groups = [make_group(ticket) for ticket in range(4)]
    put(replay, groups)
    records = [group[member] for member in (1, 0) for group in reversed(groups)]
    found = replay.read_latents([(record.record_id, 1) for record in records])
    assert all(
        np.array_equal(latent, record.latents[1])
        for latent, record in zip(found, records, strict=True)
    )


@several_servers
def test_each_server_keeps_its_share_of_the_capacity(
    new_replay: NewReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = new_replay(capacity_records=11)
    put(replay, [make_group(ticket) for ticket in range(12)])
    replay.commit([(record.record_id, scores()) for record in claim(replay)])
    index = LogIndex(group_size=2)
    index.extend(replay.tail(START, max_entries=100))
    # Four records of each, an eleventh rounded up: the newest two groups of every server.
    assert index.ticket.tolist() == [ticket for ticket in range(6, 12) for _ in range(2)]
    assert_balanced(replay)


def test_the_bytes_are_shared_as_the_records_are() -> None:
    settings = ReplaySettings(url="redis://a redis://b", run="x", capacity_records=5)
    assert [each.capacity_bytes for each in settings.of_shards()] == [0, 0]
    with_bytes = ReplaySettings(
        url="redis://a redis://b", run="x", capacity_records=5, capacity_bytes=7
    )
    assert [each.capacity_bytes for each in with_bytes.of_shards()] == [4, 4]
    assert [each.capacity_records for each in with_bytes.of_shards()] == [3, 3]


@several_servers
def test_failed_records_of_all_servers_come_newest_first(
    replay: ShardedReplay, make_group: MakeGroup
) -> None:
    put(replay, [make_group(ticket, size=1) for ticket in range(4)])
    names = [f"{ticket:010d}.000" for ticket in (2, 0, 3, 1)]
    for name in names:
        replay.fail(name, "boom", retry=False)
        time.sleep(0.005)
    assert [failed.record_id for failed in replay.quarantined(3)] == names[:0:-1]
    assert replay.release(names) == 4


# The log


@several_servers
def test_the_index_is_the_same_on_one_server_and_on_several(
    server: EmbeddedServer, replay: ShardedReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    one = connect_replay(ReplaySettings(url=server.url, run="alone", capacity_records=1000))
    tables = []
    for each in (one, replay):
        put(each, [make_group(ticket) for ticket in range(7)])
        records = [r for r in claim(each) if r.record_id != FAILING]
        each.fail(FAILING, "boom", retry=False)
        each.commit([(r.record_id, scores(r.ticket + r.member / 8)) for r in records])
        index = LogIndex(group_size=2)
        while entries := each.tail(index.position, max_entries=3):
            index.extend(entries)
        assert index.finished(0, 7)
        tables.append((index.ticket.tolist(), index.member.tolist(), index.reward("jpeg").tolist()))
    assert tables[0] == tables[1]
    assert len(tables[0][0]) == 13
    one.erase()
    one.close()


@several_servers
def test_a_tail_may_go_on_at_any_of_its_entries(
    replay: ShardedReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(ticket) for ticket in range(5)])
    replay.commit([(record.record_id, scores()) for record in claim(replay)])
    first = replay.tail(START, max_entries=4)
    index = LogIndex(group_size=2)
    index.extend(first[:2])
    while entries := replay.tail(index.position, max_entries=2):
        index.extend(entries)
    assert index.finished(0, 5)
    index.extend(replay.tail(START, max_entries=100))
    assert len(index) == 10


@several_servers
def test_a_position_on_another_number_of_servers_is_refused(replay: ShardedReplay) -> None:
    with pytest.raises(ValueError, match="one on 2 servers, not on 3"):
        replay.tail("1700-0,1701-3", max_entries=1)


# Which server is which


@several_servers
def test_one_server_named_twice_is_refused(urls: list[str]) -> None:
    settings = ReplaySettings(url=f"{urls[0]} {urls[0]}", run="twice", capacity_records=1)
    with pytest.raises(ReplayUnfit, match="is server 1 of 2 and cannot be 2 of 2"):
        connect_replay(settings)
    RedisReplay(settings.of_shards()[0]).erase()


@pytest.mark.parametrize("began", [1, 2, 3])
@pytest.mark.parametrize("goes_on", [1, 2, 3])
@several_servers
def test_a_run_keeps_the_number_of_its_servers(urls: list[str], began: int, goes_on: int) -> None:
    first, again = (
        ReplaySettings(url=" ".join(urls[:count]), run="counted", capacity_records=1)
        for count in (began, goes_on)
    )
    replay = connect_replay(first)
    refused = pytest.raises(ReplayUnfit, match=f"1 of {began} and cannot be 1 of {goes_on}")
    with contextlib.nullcontext() if began == goes_on else refused:
        connect_replay(again).close()
    replay.erase()
    replay.close()


@several_servers
def test_a_run_keeps_the_order_of_its_servers(urls: list[str]) -> None:
    settings = ReplaySettings(url=" ".join(urls), run="ordered", capacity_records=1)
    replay = connect_replay(settings)
    with pytest.raises(ReplayUnfit, match="order of its servers"):
        connect_replay(ReplaySettings(url=" ".join(urls[::-1]), run="ordered", capacity_records=1))
    replay.erase()
    replay.close()


def test_two_databases_of_one_server_are_two_servers() -> None:
    with EmbeddedServer(transport="tcp") as server:
        bare = server.url.removesuffix("/0")
        settings = ReplaySettings(url=f"{bare}/0 {bare}/1", run="x", capacity_records=9)
        replay = connect_replay(settings)
        replay.admit(limit=4, policy_version=0)
        for _ in range(4):
            replay.lease_ticket("a", lease_s=LEASE_S)
        with connect(f"{bare}/1", timeout_s=5) as client:
            assert client.hget("fleetune:{x}:tickets", "next") == b"5"
        replay.close()


def test_no_password_of_any_server_is_shown() -> None:
    settings = ReplaySettings(
        url="redis://:secret@a:1/0 redis://me:hidden@b:1/0", run="x", capacity_records=9
    )
    replay = ShardedReplay(settings)
    shown = f"{replay!r} {settings!r}"
    assert "redis://me:***@b:1/0" in shown
    assert not {"secret", "hidden"} & set(shown.replace("@", ":").split(":"))


@several_servers
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.tuples(st.sampled_from(("admit", "lease", "skip")), st.integers(1, 6))))
def test_tickets_are_issued_once_below_the_limit_with_the_version_of_their_admission(
    urls: list[str], steps: list[tuple[str, int]]
) -> None:
    replay = connect_replay(ReplaySettings(url=" ".join(urls), run="issue", capacity_records=1))
    limit, first, version_of, issued = 0, 0, {}, {}
    for version, (what, count) in enumerate(steps):
        if what == "admit":
            version_of |= dict.fromkeys(range(limit, limit + count), version)
            limit += count
            replay.admit(limit=limit, policy_version=version)
            replay.admit(limit=limit, policy_version=version + 1)
        elif what == "skip":
            first = max(first, max(issued, default=-1) + 1)
            replay.skip_to(first)
            limit = max(limit, first)
        for _ in range(count if what == "lease" else 0):
            ticket = replay.lease_ticket("a", lease_s=LEASE_S)
            if ticket is None:
                break
            assert ticket.number not in issued
            issued[ticket.number] = ticket.policy_version
    while (ticket := replay.lease_ticket("a", lease_s=LEASE_S)) is not None:
        assert ticket.number not in issued
        issued[ticket.number] = ticket.policy_version
    counters = replay.counters()
    replay.erase()
    replay.close()
    assert set(range(first, limit)) <= set(issued)
    assert issued == {number: version_of[number] for number in issued}
    assert (counters.issued, counters.leased) == (limit, sum(n >= first for n in issued))
