"""What a replay promises of a whole run: handed on, kept apart, erased, and lived through."""

import copy
import dataclasses
import random
import threading
import time

import pytest

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnfit
from buffer.records import START, IndexEntry
from buffer.redis_replay import RedisReplay, ReplaySettings
from tests.services.replay_calls import (
    SHORT_S,
    MakeGroup,
    MakeScores,
    NewReplay,
    assert_balanced,
    claim,
    one_server,
    put,
)

pytestmark = pytest.mark.redis


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
    assert list(replay._link.client.scan_iter("fleetune:{gone}:*")) == []
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
        replay, rng = type(control)(settings), random.Random(seed)
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


@one_server
@pytest.mark.parametrize("written", [None, b"1", b"3"])
def test_a_run_of_another_record_format_is_refused_and_left_alone(
    server: EmbeddedServer, new_replay: NewReplay, written: bytes | None
) -> None:
    replay = new_replay()
    replay.admit(limit=3, policy_version=0)
    key = f"fleetune:{{{replay.settings.run}}}:tickets"
    with connect(server.url, timeout_s=5) as admin:
        if written is None:  # as a program wrote it that knew of no other format
            admin.hdel(key, "format")
        else:
            admin.hset(key, "format", written)
        with pytest.raises(ReplayUnfit, match="begin a run of another name"):
            new_replay()
        assert admin.hget(key, "limit") == b"3"
