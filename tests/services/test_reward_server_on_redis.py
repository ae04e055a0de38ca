"""Reward servers on a real replay: every record ends once, whoever dies."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from buffer.records import START, FailedEntry, IndexEntry, Record, record_id
from buffer.redis_replay import RedisReplay
from reward_servers.base import Scored
from reward_servers.server import RewardServer, ServerSettings

pytestmark = pytest.mark.redis

SETTINGS = ServerSettings(max_batch=8, batch_wait_s=0.01, timeout_s=1, lease_s=2, block_s=0.1)


class Brightness:
    """The mean of each picture; those of level 13 cannot be scored."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        values_B = images_BHWC.mean(axis=(1, 2, 3)).astype(np.float32)
        return Scored(values_B, {int(i): "unlucky" for i in np.flatnonzero(values_B == 13)})


def decode(latents_BCHW: np.ndarray) -> np.ndarray:
    return np.repeat(latents_BCHW[:, :1], 3, axis=1).transpose(0, 2, 3, 1).astype(np.uint8)


def put(replay: RedisReplay, groups: int) -> None:
    """Groups of one record; the latent of ticket n is n."""
    replay.admit(limit=groups, policy_version=0)
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


def test_two_servers_end_every_record_once_and_take_over_the_claims_of_a_dead_one(
    new_replay: Callable[..., RedisReplay],
) -> None:
    replay = new_replay()
    put(replay, 30)
    assert len(replay.claim("r-dead", max_records=5, block_s=1, lease_s=2)) == 5
    servers = [
        RewardServer(new_replay(), decode, {"light": Brightness()}, owner=owner, settings=SETTINGS)
        for owner in ("r-0", "r-1")
    ]
    threads = [threading.Thread(target=server.run, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while replay.counters().pending > 0:
        assert time.monotonic() < deadline, replay.counters()
        time.sleep(0.05)
    for server, thread in zip(servers, threads, strict=True):
        server.stop()
        thread.join(10)
    entries = replay.tail(START, max_entries=1000)
    rewards = {e.ticket: e.rewards["light"] for e in entries if isinstance(e, IndexEntry)}
    failed = [(e.ticket, e.reason) for e in entries if isinstance(e, FailedEntry)]
    assert rewards == {ticket: (float(ticket),) for ticket in range(30) if ticket != 13}
    assert failed == [(13, "light of step 1: unlucky")]
    assert sum(int(server.stats()["scored"]) for server in servers) == 29
