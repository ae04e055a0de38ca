"""How much more many samplers make than one, where none of them computes.

Samplers, reward servers, learner's tailing and Redis are those of a run; only the networks are
left out: a policy and a reward wait as long as theirs would take on a GPU. What is left is what
the runtime adds, and whether the parts that serve all samplers keep up with them.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from actors.prompts import PromptSource
from actors.rollout import Group, Rollout
from actors.worker import SamplerWorker, WeightSource, WorkerSettings
from buffer.records import START, IndexEntry
from buffer.redis_replay import RedisReplay, ReplaySettings
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.policy.board import Weights
from reward_servers.server import RewardServer, ServerSettings

MEMBERS = 6
LATENCY_S = 1.5
"""Of a group: about that of six pictures of a 50-step model."""
SCORE_S = 0.1
SAMPLERS_PER_SERVER = 16
_SHAPE = (4, 8, 8)
_STALL_S = 120.0


class WaitingPolicy:
    """Takes as long as a network, and hands out the same latents for every group.

    Args:
        late_s: before the first group, so that samplers are out of step, as they come to be.
    """

    def __init__(self, latency_s: float, *, late_s: float) -> None:
        self._latency_s = latency_s
        self._late_s = late_s
        self._latents = np.zeros((MEMBERS, 1, *_SHAPE), np.float16)

    def load(self, weights: Weights, /) -> None:
        """Nothing to load."""

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        """One rollout a group, after the time of one."""
        time.sleep(self._latency_s + self._late_s)
        self._late_s = 0.0
        return [Rollout((1,), (0,), self._latents) for _ in groups]


class WaitingReward:
    """Takes as long for a batch as a network."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """A number a picture."""
        time.sleep(SCORE_S)
        return np.zeros(len(prompts), np.float32)


class FirstVersion:
    """A policy that is never published anew."""

    def latest(self) -> tuple[int, int]:
        return 0, 0

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        return 0, dict[str, np.ndarray]()


def rate(url: str, samplers: int, *, rounds: int, latency_s: float = LATENCY_S) -> float:
    """Samples a second that so many samplers have scored, over the middle of their rounds.

    Every worker is a thread of this process; between two groups it only waits.

    Args:
        rounds: groups a sampler; the first and the last of each are not counted.
    """
    name = f"samplers-{samplers}-{time.monotonic_ns()}"
    replay = RedisReplay.connect(ReplaySettings(url=url, run=name, capacity_records=10**6))
    servers = -(-samplers // SAMPLERS_PER_SERVER)
    workers: list[SamplerWorker | RewardServer] = [new_server(replay, i) for i in range(servers)]
    workers += [new_sampler(replay, i, samplers, latency_s) for i in range(samplers)]
    with at_work(workers):
        _learn(replay, samplers, rounds)
    ended_ms = np.sort(list(_ended_ms(replay).values()))
    replay.erase()
    replay.close()
    steady_ms = ended_ms[samplers:-samplers]
    return MEMBERS * (len(steady_ms) - 1) / (np.ptp(steady_ms) / 1000)


@contextmanager
def at_work(workers: Sequence[SamplerWorker | RewardServer]) -> Iterator[None]:
    """Each on a thread of its own while the block lasts."""
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(_STALL_S)


def new_sampler(
    replay: RedisReplay,
    number: int,
    samplers: int,
    latency_s: float,
    weights: WeightSource | None = None,
) -> SamplerWorker:
    """One of so many samplers, that only waits.

    Args:
        weights: None: nothing is ever published.
    """
    return SamplerWorker(
        replay,
        PromptSource(["a red circle left of a blue square"], run_seed=0),
        weights or FirstVersion(),
        WaitingPolicy(latency_s, late_s=latency_s * number / samplers),
        owner=f"sampler-{number}",
        settings=WorkerSettings(),
        loaded_version=0,
    )


def new_server(replay: RedisReplay, number: int) -> RewardServer:
    """A reward server that only waits."""
    return RewardServer(
        replay,
        lambda latents_BCHW: np.zeros((len(latents_BCHW), 8, 8, 3), np.uint8),
        {"reward": WaitingReward()},
        owner=f"reward-{number}",
        settings=ServerSettings(),
    )


def _learn(replay: RedisReplay, samplers: int, rounds: int) -> None:
    """Admits the tickets of all rounds and tails the log until they are scored."""
    source = GroupSource(
        replay=replay,
        rewards={"reward": 1.0},
        group_size=MEMBERS,
        max_open=2 * samplers + 2,
        capacity_groups=10**6,
        stall_s=_STALL_S,
        stopping=threading.Event(),
    )
    groups = ScoredGroups(source, steps=[0], admits=True)
    groups.collect(range(samplers * rounds), policy_version=0)


def _ended_ms(replay: RedisReplay) -> Mapping[int, int]:
    """Ticket -> the server's clock when the last of its records was committed."""
    ended: dict[int, int] = {}
    position = START
    while entries := replay.tail(position, max_entries=1000):
        position = entries[-1].position
        for entry in entries:
            if isinstance(entry, IndexEntry):
                ended[entry.ticket] = int(entry.position.partition("-")[0])
    return ended
