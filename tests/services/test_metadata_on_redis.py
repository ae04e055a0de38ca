"""What a prompt comes with reaches its rewards over a real replay, however often they are asked."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from actors.prompt_sets import PromptSet, Row, set_of
from actors.prompts import PromptSource
from buffer.records import START, IndexEntry, Record, record_id
from buffer.redis_replay import RedisReplay
from reward_servers.metadata import informed
from reward_servers.server import RewardServer, ServerSettings

pytestmark = pytest.mark.redis

SETTINGS = ServerSettings(max_batch=8, batch_wait_s=0.01, timeout_s=5, lease_s=2, block_s=0.1)
PROMPTS: PromptSet = set_of("here", [Row(f"{i}", f"prompt {i}", {"number": i}) for i in range(7)])
SOURCE = PromptSource(PROMPTS.prompts, run_seed=5)
TICKETS = 20


class Numbered:
    """The number beside the prompt; fails on every picture's first `failures` attempts."""

    def __init__(self, failures: int = 0) -> None:
        self._left = dict.fromkeys(range(TICKETS), failures)
        self.asked: Counter[int] = Counter()

    def score(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> np.ndarray:
        if len(prompts) > 1:
            raise RuntimeError("one at a time")
        ticket = int(images[0, 0, 0, 0])
        self.asked[ticket] += 1
        if self._left[ticket] > 0:
            self._left[ticket] -= 1
            raise RuntimeError("not yet")
        return np.array([row["number"] for row in metadata], dtype=np.float32)


def decode(latents_BCHW: np.ndarray) -> np.ndarray:
    return np.repeat(latents_BCHW[:, :1], 3, axis=1).transpose(0, 2, 3, 1).astype(np.uint8)


def put(replay: RedisReplay) -> None:
    """One record a ticket, whose latent is the ticket's number."""
    replay.admit(limit=TICKETS, policy_version=0)
    for _ in range(TICKETS):
        ticket = replay.lease_ticket("s-0", lease_s=60)
        assert ticket is not None
        number = ticket.number
        record = Record(
            record_id=record_id(number, 0),
            ticket=number,
            member=0,
            prompt=SOURCE.prompt_of(number),
            policy_version=0,
            seed=SOURCE.seed_of(number),
            steps=(1,),
            scored=(0,),
            latents=(np.full((4, 2, 2), number, dtype=np.float16),),
        )
        assert replay.put_group(number, [record])


def served(replay: RedisReplay, reward: Numbered) -> None:
    """Scores until nothing is pending."""
    model = informed(reward, PROMPTS.table)
    server = RewardServer(replay, decode, {"number": model}, owner="r-0", settings=SETTINGS)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while replay.counters().pending > 0:
        assert time.monotonic() < deadline, replay.counters()
        time.sleep(0.02)
    server.stop()
    thread.join(10)


def rewards(replay: RedisReplay) -> dict[int, float]:
    entries = replay.tail(START, max_entries=1000)
    return {e.ticket: e.rewards["number"][0] for e in entries if isinstance(e, IndexEntry)}


EXPECTED = {
    ticket: float(PROMPTS.prompts.index(SOURCE.prompt_of(ticket))) for ticket in range(TICKETS)
}


def test_every_record_is_scored_with_the_metadata_of_its_own_prompt(
    new_replay: Callable[..., RedisReplay],
) -> None:
    replay = new_replay()
    put(replay)
    served(replay, Numbered())
    assert rewards(replay) == EXPECTED
    assert len(set(EXPECTED.values())) == 7


def test_a_record_that_is_tried_again_is_scored_with_the_same(
    new_replay: Callable[..., RedisReplay],
) -> None:
    replay = new_replay(max_attempts=3)
    put(replay)
    reward = Numbered(failures=2)
    served(replay, reward)
    assert rewards(replay) == EXPECTED
    assert replay.counters().retried == 2 * TICKETS
    assert min(reward.asked.values()) >= 3


def test_a_record_that_is_released_from_quarantine_is_scored_with_the_same(
    new_replay: Callable[..., RedisReplay],
) -> None:
    replay = new_replay(max_attempts=1)
    put(replay)
    served(replay, Numbered(failures=1))
    assert rewards(replay) == {}
    held = [each.record_id for each in replay.quarantined(1000)]
    assert len(held) == TICKETS
    replay.release(held)
    served(new_replay(max_attempts=1), Numbered())
    assert rewards(replay) == EXPECTED
