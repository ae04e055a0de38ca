"""A replay over several servers: who is asked, and what goes on while one of them is away."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnavailable, ReplayUnfit
from buffer.index import LogIndex
from buffer.records import START, IndexEntry, Ticket
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from buffer.sharded_replay import ShardedReplay, connect_replay
from tests.services.replay_calls import (
    LEASE_S,
    SERVERS,
    SHORT_S,
    MakeGroup,
    MakeScores,
    NewReplay,
    assert_balanced,
    claim,
    issue,
    put,
    several_servers,
)

pytestmark = pytest.mark.redis


class World:
    """Servers of their own that may be killed, and clients of one run on them."""

    def __init__(self, folder: Path) -> None:
        self.servers = [EmbeddedServer(folder / str(number)) for number in range(SERVERS)]
        self._replays: list[ShardedReplay] = []

    def replay(self, *, outage_s: float = 20.0, capacity_records: int = 1000) -> ShardedReplay:
        settings = ReplaySettings(
            url=" ".join(server.url for server in self.servers),
            run="sharded",
            capacity_records=capacity_records,
            outage_s=outage_s,
            max_attempts=1000,
        )
        self._replays.append(ShardedReplay(settings))
        return self._replays[-1]

    def kill(self, number: int) -> None:
        os.kill(self.servers[number].pid, signal.SIGKILL)
        while not self.servers[number]._exited():
            time.sleep(0.01)

    def close(self) -> None:
        for replay in self._replays:
            replay.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with contextlib.ExitStack() as stack:
        for server in made.servers:
            stack.enter_context(server)
        stack.callback(made.close)
        ShardedReplay.connect(made.replay().settings).close()
        yield made


def leased(replay: ShardedReplay, count: int) -> list[int]:
    found = [replay.lease_ticket("a", lease_s=LEASE_S) for _ in range(count)]
    return [ticket.number for ticket in found if ticket is not None]


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


def test_a_server_that_missed_an_admission_gives_what_the_next_one_says(world: World) -> None:
    replay = world.replay()
    world.kill(1)
    replay.admit(limit=3, policy_version=4)
    assert leased(replay, 3) == [0, 2]
    world.servers[1].revive()
    time.sleep(0.2)
    replay.admit(limit=3, policy_version=4)
    ticket = replay.lease_ticket("a", lease_s=LEASE_S)
    assert ticket is not None
    assert (ticket.number, ticket.policy_version) == (1, 4)


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


def test_the_index_is_the_same_on_one_server_and_on_several(
    server: EmbeddedServer, world: World, make_group: MakeGroup, scores: MakeScores
) -> None:
    one = connect_replay(ReplaySettings(url=server.url, run="alone", capacity_records=1000))
    tables = []
    for replay in (one, world.replay()):
        put(replay, [make_group(ticket) for ticket in range(7)])
        records = claim(replay)
        replay.fail(records.pop().record_id, "boom", retry=False)
        replay.commit([(r.record_id, scores(r.ticket + r.member / 8)) for r in records])
        index = LogIndex(group_size=2)
        while entries := replay.tail(index.position, max_entries=3):
            index.extend(entries)
        tables.append((index.ticket.tolist(), index.member.tolist(), index.reward("jpeg").tolist()))
        assert index.finished(0, 7)
    # Which record failed depends on the order of claims; the others are the same.
    assert len(tables[0][0]) == len(tables[1][0]) == 13
    rows = [{(t, m): r for t, m, r in zip(*table, strict=True)} for table in tables]
    both = rows[0].keys() & rows[1].keys()
    assert {key: rows[0][key] for key in both} == {key: rows[1][key] for key in both}
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


def test_a_position_outlives_a_restart_of_a_server(
    world: World, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = world.replay()
    put(replay, [make_group(ticket) for ticket in range(3)])
    records = claim(replay)
    replay.commit([(record.record_id, scores()) for record in records[:4]])
    position = replay.tail(START, max_entries=9)[-1].position
    world.kill(2)
    world.servers[2].revive()
    again = world.replay()
    assert again.tail(position, max_entries=9) == []
    again.commit([(record.record_id, scores()) for record in records])
    new = again.tail(position, max_entries=9)
    assert sorted(entry.record_id for entry in new if isinstance(entry, IndexEntry)) == sorted(
        record.record_id for record in records[4:]
    )


@several_servers
def test_a_position_on_another_number_of_servers_is_refused(replay: ShardedReplay) -> None:
    with pytest.raises(ValueError, match="one on 2 servers, not on 3"):
        replay.tail("1700-0,1701-3", max_entries=1)


# A server that is away


def test_leases_and_claims_go_on_without_a_server_that_is_away(
    world: World, make_group: MakeGroup
) -> None:
    replay = world.replay()
    put(replay, [make_group(ticket) for ticket in range(3)])
    replay.admit(limit=9, policy_version=0)
    world.kill(0)
    begun = time.monotonic()
    assert sorted(leased(replay, 9)) == [4, 5, 7, 8]
    assert {record.ticket for record in claim(replay)} == {1, 2}
    assert claim(replay) == []
    assert time.monotonic() - begun < 10


def test_a_server_that_is_away_keeps_the_others_parts_from_nothing(
    world: World, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = world.replay(outage_s=1.0)
    put(replay, [make_group(ticket) for ticket in range(3)])
    records = claim(replay)
    world.kill(0)
    with pytest.raises(ReplayUnavailable):
        replay.commit([(record.record_id, scores()) for record in records])
    world.servers[0].revive()
    assert replay.commit([(record.record_id, scores()) for record in records]) == 2
    assert_balanced(replay)


def test_a_part_waits_for_its_server(
    world: World, make_group: MakeGroup, scores: MakeScores
) -> None:
    replay = world.replay()
    put(replay, [make_group(0)])
    scored = [(record.record_id, scores()) for record in claim(replay)]
    world.kill(0)
    timer = threading.Timer(0.5, world.servers[0].revive)
    timer.start()
    assert replay.commit(scored) == 2
    timer.join()


def test_a_failure_is_told_once_to_a_server_that_was_away(
    world: World, make_group: MakeGroup
) -> None:
    replay = world.replay()
    put(replay, [make_group(0, size=1)])
    [record] = claim(replay)
    world.kill(0)
    timer = threading.Timer(0.5, world.servers[0].revive)
    timer.start()
    assert not replay.fail(record.record_id, "boom", retry=True)
    timer.join()
    assert replay.counters().retried == 1


def test_leases_on_other_servers_are_renewed_while_one_is_away(world: World) -> None:
    replay = world.replay()
    replay.admit(limit=3, policy_version=0)
    tickets = [replay.lease_ticket("a", lease_s=LEASE_S) for _ in range(3)]
    world.kill(0)
    begun = time.monotonic()
    assert all(replay.renew_ticket(ticket, lease_s=LEASE_S) for ticket in tickets if ticket)
    assert time.monotonic() - begun < 5
    assert not replay.renew_ticket(Ticket(1, 0, "another's"), lease_s=LEASE_S)


def test_counts_of_a_server_that_is_away_are_its_last_ones_until_the_outage_is_over(
    world: World, make_group: MakeGroup
) -> None:
    replay = world.replay(outage_s=2.0)
    put(replay, [make_group(ticket) for ticket in range(3)])
    before = replay.counters()
    world.kill(1)
    assert replay.counters() == before
    replay.tail(START, max_entries=9)
    with pytest.raises(ReplayUnavailable):  # noqa: PT012
        for _ in range(100):
            time.sleep(0.05)
            replay.counters()
    with pytest.raises(ReplayUnavailable):
        replay.tail(START, max_entries=9)
    assert sorted(leased(replay, 3)) == []


def test_without_any_server_a_lease_and_a_claim_wait_as_long_as_an_outage_may_last(
    world: World,
) -> None:
    replay = world.replay(outage_s=0.7)
    for number in range(SERVERS):
        world.kill(number)
    for ask in (
        lambda: replay.lease_ticket("a", lease_s=LEASE_S),
        lambda: claim(world.replay(outage_s=0.7)),
    ):
        begun = time.monotonic()
        with pytest.raises(ReplayUnavailable):
            ask()
        assert 0.7 <= time.monotonic() - begun < 15


def test_a_waiting_claim_wakes_for_any_server_soon(world: World, make_group: MakeGroup) -> None:
    replay, other = world.replay(), world.replay()
    issue(replay, SERVERS)
    for ticket in range(SERVERS):
        timer = threading.Timer(
            0.3, lambda ticket=ticket: other.put_group(ticket, make_group(ticket))
        )
        timer.start()
        found = replay.claim("a", max_records=9, block_s=10, lease_s=LEASE_S)
        assert {record.ticket for record in found} == {ticket}
        timer.join()


def test_a_server_killed_under_a_run_costs_nothing_and_the_others_go_on(
    world: World, make_group: MakeGroup, scores: MakeScores
) -> None:
    """Samplers, reward servers and a learner at work; one server dies and comes back."""
    tickets, size, victim = 60, 2, 1
    stop, index = threading.Event(), LogIndex(group_size=size)
    errors: list[Exception] = []

    def worker(work: Callable[[ShardedReplay], None]) -> threading.Thread:
        def run() -> None:
            try:
                work(world.replay())
            except Exception as error:  # noqa: BLE001 - told at the end
                errors.append(error)

        return threading.Thread(target=run)

    def sample(replay: ShardedReplay) -> None:
        while not stop.is_set():
            ticket = replay.lease_ticket("s", lease_s=0.5)
            if ticket is not None:
                replay.put_group(ticket.number, make_group(ticket.number, size=size))
            time.sleep(0.01)

    def score(replay: ShardedReplay) -> None:
        while not stop.is_set():
            records = replay.claim("r", max_records=4, block_s=SHORT_S, lease_s=0.5)
            replay.commit([(r.record_id, scores(r.ticket)) for r in records])

    def finished() -> set[int]:
        return {number for number in range(tickets) if index.finished(number, number + 1)}

    def learn(replay: ShardedReplay) -> None:
        deadline = time.monotonic() + 60
        while not index.finished(0, tickets) and time.monotonic() < deadline:
            index.extend(replay.tail(index.position, max_entries=100))
            window = replay.counters().progress + 9
            replay.admit(limit=min(tickets, window), policy_version=0)
            time.sleep(0.01)

    learner = worker(learn)
    others = [worker(sample), worker(sample), worker(score), worker(score)]
    for thread in (learner, *others):
        thread.start()
    while not index.finished(0, 6):
        time.sleep(0.01)
    world.kill(victim)
    before = finished()
    time.sleep(1.5)
    meanwhile = finished() - before
    world.servers[victim].revive()
    learner.join()
    stop.set()
    for thread in others:
        thread.join()
    assert errors == []
    assert {n % SERVERS for n in meanwhile} == {0, 2}
    assert index.finished(0, tickets)
    replay = world.replay()
    names = [e.record_id for e in replay.tail(START, max_entries=1000) if isinstance(e, IndexEntry)]
    assert sorted(names) == [r.record_id for t in range(tickets) for r in make_group(t, size=size)]
    assert replay.counters().committed == tickets * size
    assert_balanced(replay)


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
