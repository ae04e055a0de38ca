"""What a replay promises of commits: all or nothing, counted once, whatever else happens."""

import dataclasses
import os
import signal
import threading
import time

import pytest

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.records import START, IndexEntry, Scores
from buffer.redis_replay import RedisReplay
from tests.services.replay_calls import (
    MakeGroup,
    MakeScores,
    NewReplay,
    assert_balanced,
    claim,
    one_server,
    put,
    wait_for,
)

pytestmark = pytest.mark.redis


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


def test_the_log_tells_who_sampled_and_scored_a_record_and_when(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    begun_ms = 1000 * time.time() - 1
    made = [dataclasses.replace(record, sampler="sampler-3.1") for record in make_group(0)]
    put(replay, [made])
    names = [record.record_id for record in claim(replay)]
    replay.unclaim(names[:1])  # queued once more
    time.sleep(0.05)
    names = names[1:] + [record.record_id for record in claim(replay)]
    replay.commit([(name, scores()) for name in names], "reward-0.2")
    for entry in replay.tail(START, max_entries=10):
        assert isinstance(entry, IndexEntry)
        assert (entry.sampler, entry.scorer) == ("sampler-3.1", "reward-0.2")
        assert begun_ms <= entry.queued_ms < entry.committed_ms <= 1000 * time.time() + 1


def test_a_commit_sent_twice_counts_once(
    replay: RedisReplay, make_group: MakeGroup, scores: MakeScores
) -> None:
    put(replay, [make_group(0)])
    names = [record.record_id for record in claim(replay)]
    assert replay.commit([(name, scores(1)) for name in names]) == 2
    assert replay.commit([(name, scores(2)) for name in names]) == 0
    assert len(replay.tail(START, max_entries=10)) == 2
    assert_balanced(replay)


@one_server
def test_a_commit_during_a_stall_of_the_server_counts_once(
    server: EmbeddedServer,
    new_replay: NewReplay,
    make_group: MakeGroup,
    scores: MakeScores,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client gives up waiting and sends the same command again: the server applies all."""

    def go_on_when_asked_again() -> None:
        try:
            wait_for(lambda: "the replay does not answer" in caplog.text)
        finally:
            os.kill(server.pid, signal.SIGCONT)

    replay = new_replay(timeout_s=0.2, outage_s=120)
    put(replay, [make_group(0)])
    scored = [(record.record_id, scores()) for record in claim(replay)]
    with connect(server.url, timeout_s=5) as admin:
        before = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
        os.kill(server.pid, signal.SIGSTOP)
        waiting = threading.Thread(target=go_on_when_asked_again)
        waiting.start()
        replay.commit(scored)
        waiting.join()
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
