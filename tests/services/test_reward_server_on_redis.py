"""Reward servers on a real replay: every record ends once, whoever dies."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from buffer.records import START, FailedEntry, IndexEntry, Record, record_id
from buffer.redis_replay import RedisReplay
from reward_servers.base import Scored
from reward_servers.probe import scored_before
from reward_servers.server import RewardServer, ServerSettings

pytestmark = pytest.mark.redis

SETTINGS = ServerSettings(max_batch=8, batch_wait_s=0.01, timeout_s=1, lease_s=2, block_s=0.1)


class Brightness:
    """The mean of each picture; those of level 13 cannot be scored."""

    up = True

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        if not self.up:
            raise ConnectionError("service is down")
        values_B = images_BHWC.mean(axis=(1, 2, 3)).astype(np.float32)
        return Scored(values_B, {int(i): "unlucky" for i in np.flatnonzero(values_B == 13)})


def decode(latents_BCHW: np.ndarray) -> np.ndarray:
    return np.repeat(latents_BCHW[:, :1], 3, axis=1).transpose(0, 2, 3, 1).astype(np.uint8)


def put(replay: RedisReplay, groups: int, *, first: int = 0) -> None:
    """Groups of one record; the latent of ticket n is n."""
    replay.admit(limit=first + groups, policy_version=0)
    for _ in range(groups):
        ticket = replay.lease_ticket("s-0", lease_s=60)
        assert ticket is not None
        number = ticket.number
        record = Record(
            record_id=record_id(number, 0),
            ticket=number,
            member=0,
            prompt="grey",
            policy_version=0,
            seed=number,
            steps=(1,),
            scored=(0,),
            latents=(np.full((4, 2, 2), number, dtype=np.float16),),
        )
        assert replay.put_group(number, [record])


def new_server(replay: RedisReplay, owner: str, light: Brightness | None = None) -> RewardServer:
    return RewardServer(
        replay,
        decode,
        {"light": light or Brightness()},
        owner=owner,
        settings=SETTINGS,
        scored_before=lambda: scored_before(replay),
    )


@contextmanager
def running(servers: Sequence[RewardServer]) -> Iterator[None]:
    threads = [threading.Thread(target=server.run, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    yield
    for server, thread in zip(servers, threads, strict=True):
        server.stop()
        thread.join(10)


def wait_for_none_pending(replay: RedisReplay) -> None:
    wait_until(lambda: replay.counters().pending == 0, replay)


def wait_until(look: Callable[[], bool], replay: RedisReplay) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline, replay.counters()
        time.sleep(0.05)


def test_two_servers_end_every_record_once_and_take_over_the_claims_of_a_dead_one(
    new_replay: Callable[..., RedisReplay],
) -> None:
    replay = new_replay()
    put(replay, 30)
    assert len(replay.claim("r-dead", max_records=5, block_s=1, lease_s=2)) == 5
    servers = [new_server(new_replay(), owner) for owner in ("r-0", "r-1")]
    with running(servers):
        wait_for_none_pending(replay)
    entries = replay.tail(START, max_entries=1000)
    rewards = {e.ticket: e.rewards["light"] for e in entries if isinstance(e, IndexEntry)}
    failed = [(e.ticket, e.reason) for e in entries if isinstance(e, FailedEntry)]
    assert rewards == {ticket: (float(ticket),) for ticket in range(30) if ticket != 13}
    assert failed == [(13, "light of step 1: unlucky")]
    assert sum(int(server.stats()["scored"]) for server in servers) == 29


def test_a_server_that_starts_while_a_reward_is_down_wears_no_record_out(
    new_replay: Callable[..., RedisReplay],
) -> None:
    replay, light = new_replay(), Brightness()
    put(replay, 3)
    with running([new_server(new_replay(), "r-0", light)]):
        wait_for_none_pending(replay)
    light.up = False
    put(replay, 6, first=3)
    late = new_server(new_replay(), "r-1", light)
    with running([late]):
        wait_until(lambda: "service is down" in str(late.stats()["down"]), replay)
        light.up = True
        wait_for_none_pending(replay)
    counters = replay.counters()
    assert (counters.committed, counters.failed, counters.retried) == (9, 0, 0)


def test_no_probe_is_found_where_nothing_was_scored(new_replay: Callable[..., RedisReplay]) -> None:
    replay = new_replay()
    put(replay, 2)
    assert scored_before(replay) is None
