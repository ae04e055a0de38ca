"""A sampler worker on a real replay buffer, with a policy made by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from actors.prompts import PromptSource
from actors.rollout import Group, Rollout
from actors.worker import SamplerWorker, WorkerSettings
from buffer.redis_replay import RedisReplay
from learner.policy.board import Weights

pytestmark = pytest.mark.redis


class ConstantPolicy:
    """Latents are the seed's low bits; stops its worker after a number of batches."""

    def __init__(self, batches: int) -> None:
        self.batches_left = batches
        self.stop: Callable[[], None] = lambda: None

    def load(self, weights: Weights, /) -> None:
        pass

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        self.batches_left -= 1
        if not self.batches_left:
            self.stop()
        return [
            Rollout((1, 2), (0, 1), np.full((3, 2, 4, 2, 2), group.seed % 97, np.float16))
            for group in groups
        ]


class Published:
    """A board with one version."""

    def __init__(self, version: int) -> None:
        self.version = version

    def latest(self) -> tuple[int, int]:
        return self.version, 1

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        return self.version, {}


def sampler(replay: RedisReplay, *, batches: int, **settings: Any) -> SamplerWorker:
    policy = ConstantPolicy(batches)
    worker = SamplerWorker(
        replay,
        PromptSource(["a cat", "a dog"], run_seed=1),
        Published(5),
        policy,
        owner="sampler-0.0",
        settings=WorkerSettings(**settings),
    )
    policy.stop = worker.stop
    return worker


def test_admitted_tickets_become_records_to_score(replay: RedisReplay) -> None:
    replay.admit(limit=4, policy_version=5)
    sampler(replay, batches=2, groups_per_batch=2).run()
    records = replay.claim("reward", max_records=20, block_s=1, lease_s=60)
    assert sorted(record.ticket for record in records) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_a_record_arrives_as_it_was_made(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=5)
    sampler(replay, batches=1).run()
    record = replay.claim("reward", max_records=1, block_s=1, lease_s=60)[0]
    prompts = PromptSource(["a cat", "a dog"], run_seed=1)
    told = record.prompt, record.seed, record.policy_version, float(record.latents[1].flat[0])
    seed = prompts.seed_of(0)
    assert told == (prompts.prompt_of(0), seed, 5, seed % 97)


def test_the_ticket_of_a_dead_sampler_is_sampled_by_the_next(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=5)
    assert replay.lease_ticket("a sampler that died", lease_s=0.01) is not None
    worker = sampler(replay, batches=1)
    worker.run()
    assert (worker.stats()["groups"], replay.counters().issued_records) == (1, 3)


def test_a_sampler_that_gives_up_returns_what_it_leased(replay: RedisReplay) -> None:
    replay.admit(limit=1, policy_version=6)  # which nobody publishes
    worker = sampler(replay, batches=1, idle_s=0.01, version_timeout_s=0.05, max_failures=0)
    with pytest.raises(RuntimeError, match="policy version 6"):
        worker.run()
    again = replay.lease_ticket("another", lease_s=60)
    assert again is not None
    assert again.number == 0
