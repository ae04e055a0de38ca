"""A reward's own fleet under a real local Ray: found by name, killed, scaled, hung."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.fleet import Fleet
from deploy.fleet.reward_pools import NamedMembers, RewardHost, fleet_name
from reward_servers.base import checked_scores
from reward_servers.pool import PooledReward, RewardWorker
from tests.services import fleet_world
from tests.services.fleet_world import FAST, eventually

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
cluster = fleet_world.cluster
IMAGES = np.arange(8, dtype=np.uint8).repeat(12).reshape(8, 2, 2, 3)
PROMPTS = ["a prompt"] * 8


class Grey:
    """The first value of a picture, after a moment; leaves a mark when a batch has begun."""

    def __init__(self, marks: Path, takes_s: float) -> None:
        self._marks = marks
        self._takes_s = takes_s

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        (self._marks / str(time.monotonic_ns())).touch()
        time.sleep(self._takes_s)
        return images_BHWC[:, 0, 0, 0].astype(np.float32)


@pytest.fixture
def takes_s() -> float:
    return 0.4


@pytest.fixture
def fleet(tmp_path: Path, takes_s: float) -> Iterator[Fleet]:
    def build(owner: str) -> RewardWorker:
        return RewardWorker(Grey(tmp_path, takes_s), name="grey", owner=owner, timeout_s=30)

    members = Fleet(
        build,
        name=fleet_name("grey"),
        actor_options={"num_cpus": 0},
        settings=FAST,
        host=RewardHost,
    )
    members.start(2)
    yield members
    members.stop()


@pytest.fixture
def reward(fleet: Fleet) -> PooledReward:
    pooled = PooledReward("grey", NamedMembers("grey"), timeout_s=60)
    pooled.wait(60)
    return pooled


def scores(reward: PooledReward) -> list[object]:
    return list(checked_scores(reward, IMAGES, PROMPTS))


def test_members_are_found_by_name_and_share_a_batch(reward: PooledReward, fleet: Fleet) -> None:
    eventually(lambda: len(fleet.stats()) == 2, fleet.ensure_alive)
    assert scores(reward) == list(range(8))
    assert sum(int(each.get("images", 0)) for each in fleet.stats().values()) == 8


def test_a_member_killed_with_pictures_in_hand_costs_none(
    reward: PooledReward, fleet: Fleet, tmp_path: Path
) -> None:
    results: list[object] = []
    asking = threading.Thread(target=lambda: results.extend(scores(reward)))
    asking.start()
    eventually(lambda: any(tmp_path.iterdir()), fleet.glance)
    ray.kill(ray.get_actor("reward-grey-0"))
    asking.join(60)
    assert results == list(range(8))
    replaced: list[str] = []
    eventually(lambda: replaced == ["reward-grey-0"], lambda: replaced.extend(fleet.ensure_alive()))


def test_a_fleet_that_shrinks_ends_the_batch_in_hand(
    reward: PooledReward, fleet: Fleet, tmp_path: Path
) -> None:
    results: list[object] = []
    asking = threading.Thread(target=lambda: results.extend(scores(reward)))
    asking.start()
    eventually(lambda: any(tmp_path.iterdir()), fleet.glance)
    fleet.scale(1)
    asking.join(60)
    assert results == list(range(8))
    assert scores(reward) == list(range(8))
    eventually(lambda: list(fleet.glance()) == ["reward-grey-0"], fleet.ensure_alive)


def test_a_member_that_finds_no_place_is_handed_nothing(tmp_path: Path) -> None:
    cpus = ray.cluster_resources()["CPU"]
    members = Fleet(
        lambda owner: RewardWorker(Grey(tmp_path, 0.0), name="tight", owner=owner, timeout_s=30),
        name=fleet_name("tight"),
        actor_options={"num_cpus": cpus},  # of which there is room for one
        settings=FAST,
        host=RewardHost,
    )
    members.start(2)
    try:
        found = NamedMembers("tight")
        pooled = PooledReward("tight", found, timeout_s=20)
        pooled.wait(60)
        assert scores(pooled) == list(range(8))
        assert found.names() == ["reward-tight-0"]
        eventually(
            lambda: [each.state for each in members.glance().values()] == ["working", "placing"],
            members.ensure_alive,
        )
    finally:
        members.stop()


@pytest.mark.parametrize("takes_s", [10.0])
def test_questions_are_answered_while_a_member_scores(
    reward: PooledReward, fleet: Fleet, tmp_path: Path
) -> None:
    asking = threading.Thread(target=lambda: scores(reward))
    asking.start()
    eventually(lambda: any(tmp_path.iterdir()), fleet.glance)
    begun = time.monotonic()
    assert len(fleet.stats()) == 2
    assert time.monotonic() - begun < 5
    asking.join(60)
