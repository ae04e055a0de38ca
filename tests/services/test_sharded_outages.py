"""A replay over several servers of which some are killed: what goes on, and what waits."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnavailable
from buffer.index import LogIndex
from buffer.records import START, IndexEntry, Ticket
from buffer.replay_settings import ReplaySettings
from buffer.sharded_replay import ShardedReplay
from tests.services.replay_calls import (
    LEASE_S,
    SERVERS,
    SHORT_S,
    MakeGroup,
    MakeScores,
    assert_balanced,
    claim,
    issue,
    leased,
    put,
    wait_for,
)

pytestmark = pytest.mark.redis
T = TypeVar("T")


class World:
    """Servers of their own that may be killed, and clients of one run on them."""

    def __init__(self, folder: Path) -> None:
        self.servers = [EmbeddedServer(folder / str(number)) for number in range(SERVERS)]
        self._replays: list[ShardedReplay] = []

    def replay(self, *, outage_s: float = 60.0, capacity_records: int = 1000) -> ShardedReplay:
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

    def revived_under(self, number: int, call: Callable[[], T]) -> T:
        """What a call returns that begins half a second before a server is back."""
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(call)
            time.sleep(0.5)
            # Not on a thread that ends: the server would end with it.
            self.servers[number].revive()
            return answer.result(timeout=30)

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
    # None of them is new where a slow server's answer was lost, and it was asked again.
    assert world.revived_under(0, lambda: replay.commit(scored)) in (0, 2)
    assert replay.counters().committed == 2


def test_a_failure_is_told_once_to_a_server_that_was_away(
    world: World, make_group: MakeGroup
) -> None:
    replay = world.replay()
    put(replay, [make_group(0, size=1)])
    [record] = claim(replay)
    world.kill(0)
    name = record.record_id
    assert not world.revived_under(0, lambda: replay.fail(name, "boom", retry=True))
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
    """Samplers, reward servers and a learner at work; one server dies and comes back.

    A sampler and a reward server have nothing in hand when it dies: they go on with the others.
    Whoever else has something for it waits.
    """
    tickets, size, victim = 60, 2, 1
    stop, index = threading.Event(), LogIndex(group_size=size)
    errors: list[Exception] = []
    hand = threading.Lock()

    def worker(work: Callable[[ShardedReplay], None]) -> threading.Thread:
        def run() -> None:
            try:
                work(world.replay())
            except Exception as error:  # noqa: BLE001 - told at the end
                errors.append(error)

        return threading.Thread(target=run, daemon=True)

    def sample(replay: ShardedReplay, hold: AbstractContextManager[Any] | None = None) -> None:
        while not stop.is_set():
            with hold or contextlib.nullcontext():
                ticket = replay.lease_ticket("s", lease_s=0.5)
                if ticket is not None:
                    replay.put_group(ticket.number, make_group(ticket.number, size=size))
            time.sleep(0.01)

    def score(replay: ShardedReplay, hold: AbstractContextManager[Any] | None = None) -> None:
        while not stop.is_set():
            with hold or contextlib.nullcontext():
                records = replay.claim("r", max_records=4, block_s=SHORT_S, lease_s=0.5)
                replay.commit([(r.record_id, scores(r.ticket)) for r in records])
            time.sleep(0.01)

    def finished() -> set[int]:
        return {number for number in range(tickets) if index.finished(number, number + 1)}

    def learn(replay: ShardedReplay) -> None:
        deadline = time.monotonic() + 120
        while not index.finished(0, tickets) and time.monotonic() < deadline:
            index.extend(replay.tail(index.position, max_entries=100))
            window = replay.counters().progress + 9
            replay.admit(limit=min(tickets, window), policy_version=0)
            time.sleep(0.01)

    learner = worker(learn)
    others = [worker(work) for work in (sample, score, partial(sample, hold=hand))]
    others.append(worker(partial(score, hold=hand)))
    for thread in (learner, *others):
        thread.start()
    wait_for(lambda: index.finished(0, 6) or bool(errors))
    assert errors == []
    with hand:
        world.kill(victim)
    before = finished()
    alive = set(range(SERVERS)) - {victim}

    def alive_went_on() -> bool:
        return alive <= {number % SERVERS for number in finished() - before}

    wait_for(lambda: bool(errors) or alive_went_on())
    assert errors == []
    world.servers[victim].revive()
    learner.join()
    stop.set()
    for thread in others:
        thread.join()
    assert errors == []
    assert index.finished(0, tickets)
    replay = world.replay()
    names = [e.record_id for e in replay.tail(START, max_entries=1000) if isinstance(e, IndexEntry)]
    assert sorted(names) == [r.record_id for t in range(tickets) for r in make_group(t, size=size)]
    assert replay.counters().committed == tickets * size
    assert_balanced(replay)
