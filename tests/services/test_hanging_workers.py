"""Workers that hang for good, beside one that does not: their work is done in time all the same."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from actors.host import Worker
from actors.prompts import PromptSource
from actors.rollout import Group, Rollout
from actors.worker import SamplerWorker, WorkerSettings
from buffer.redis_replay import RedisReplay
from deploy.settings.run_config import RunConfig, load_config
from reward_servers.server import RewardServer, ServerSettings
from tests.services.test_sampler_on_redis import ConstantPolicy, Published

pytestmark = pytest.mark.redis
STALL_S = 8.0


@pytest.fixture
def config() -> RunConfig:
    times = {"limits.stall_s": STALL_S, "scoring.outage_s": 1, "replay.outage_s": 1}
    times |= {"actors.lease_s": 0.5, "scoring.lease_s": 0.5, "scoring.timeout_s": 1}
    values = [f"{name}={value}" for name, value in times.items()]
    return load_config("deploy/configs/smoke.yaml", values)


class Crew:
    """Workers on threads of their own, and what those that hang wait for."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self._at_work: list[tuple[Worker, threading.Thread]] = []

    def start(self, worker: Worker) -> None:
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        self._at_work.append((worker, thread))

    def end(self) -> None:
        self.released.set()
        for worker, _ in self._at_work:
            worker.stop()
        for _, thread in self._at_work:
            thread.join(30)


@pytest.fixture
def crew(replay: RedisReplay) -> Iterator[Crew]:
    """Ends before its replay is erased."""
    crew = Crew()
    yield crew
    crew.end()


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def sampler(
    replay: RedisReplay, config: RunConfig, policy: ConstantPolicy, owner: str
) -> SamplerWorker:
    settings = WorkerSettings(
        lease_s=config.actors.lease_s,
        hold_s=config.hold_s,
        version_timeout_s=config.limits.stall_s,
    )
    prompts = PromptSource(["a cat"], run_seed=1)
    return SamplerWorker(replay, prompts, Published(5), policy, owner=owner, settings=settings)


def test_a_sampler_that_hangs_loses_its_tickets_before_the_learner_has_waited_in_vain(
    replay: RedisReplay, config: RunConfig, crew: Crew
) -> None:
    class HangingPolicy(ConstantPolicy):
        """But for its first batch, for which there is more time."""

        has_sampled = False

        def sample(self, groups: Sequence[Group]) -> list[Rollout]:
            if self.has_sampled:
                crew.released.wait(60)
            self.has_sampled = True
            return super().sample(groups)

    hangs = sampler(replay, config, HangingPolicy(batches=-1), "sampler-0.0")
    works = sampler(replay, config, ConstantPolicy(batches=-1), "sampler-1.0")
    replay.admit(limit=2, policy_version=5)
    crew.start(hangs)
    assert within(20, lambda: (hangs.stats()["groups"], hangs.stats()["held"]) == (1, 1))
    replay.admit(limit=7, policy_version=5)
    crew.start(works)
    assert within(20, lambda: works.stats()["groups"] == 5)
    # Now the learner waits for the one that is left.
    assert within(STALL_S, lambda: works.stats()["groups"] == 6)


class Grey:
    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return np.full(len(prompts), 0.5, np.float32)


def decode(latents_BCHW: np.ndarray) -> np.ndarray:
    return np.zeros((len(latents_BCHW), 4, 4, 3), np.uint8)


def test_a_reward_server_that_hangs_loses_its_records_before_the_learner_has_waited_in_vain(
    replay: RedisReplay, config: RunConfig, crew: Crew
) -> None:
    entered, has_scored = threading.Event(), threading.Event()

    def hang(latents_BCHW: np.ndarray) -> np.ndarray:
        if has_scored.is_set():  # there is more time for a first batch
            entered.set()
            crew.released.wait(60)
        return decode(latents_BCHW)

    def server(decoder: Callable[[np.ndarray], np.ndarray], owner: str) -> RewardServer:
        settings = ServerSettings(
            timeout_s=config.scoring.timeout_s,
            lease_s=config.scoring.lease_s,
            hold_s=config.hold_s,
            block_s=0.1,
        )
        return RewardServer(replay, decoder, {"grey": Grey()}, owner=owner, settings=settings)

    def draw_one_more() -> None:
        replay.admit(limit=1 + has_scored.is_set(), policy_version=5)
        policy = ConstantPolicy(batches=1)
        drawing = sampler(replay, config, policy, "sampler-0.0")
        policy.stop = drawing.stop
        drawing.run()

    hangs = server(hang, "reward-0.0")
    draw_one_more()
    crew.start(hangs)
    assert within(20, lambda: hangs.stats()["scored"] == 3)
    has_scored.set()
    draw_one_more()
    assert entered.wait(20)
    works = server(decode, "reward-1.0")
    crew.start(works)
    assert within(STALL_S, lambda: works.stats()["scored"] == 3)
