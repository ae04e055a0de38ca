"""A whole on-policy run over a real replay: what it samples, and that a stop changes no bit."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from buffer.index import LogIndex
from tests.services.training_world import MEMBERS, RLCM, Killed, Life, World

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("one_rank")]


@pytest.fixture(scope="module")
def new_world(
    server: EmbeddedServer, pipelines: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], World]:
    def make() -> World:
        folder = tmp_path_factory.mktemp("run")
        return World(server.url, folder.name, folder, pipelines, settings=RLCM)

    return make


@pytest.fixture(scope="module")
def straight(new_world: Callable[[], World], one_rank: None) -> tuple[World, Life]:
    """A run that nothing disturbed."""
    world = new_world()
    return world, world.live()


def index_of(world: World) -> LogIndex:
    index = LogIndex(group_size=MEMBERS)
    replay = world.replay()
    while entries := replay.tail(index.position, max_entries=1000):
        index.extend(entries)
    replay.close()
    return index


def test_every_cycle_trains_on_what_its_own_version_sampled(straight: tuple[World, Life]) -> None:
    index = index_of(straight[0])
    expected = np.repeat(np.arange(RLCM.cycles), RLCM.cycle_sizes[0] * MEMBERS)
    assert index.policy_version.tolist() == expected.tolist()


def test_nothing_is_sampled_that_nobody_trains_on(straight: tuple[World, Life]) -> None:
    world, _ = straight
    assert world.reward.pictures == sum(RLCM.cycle_sizes) * MEMBERS


def test_a_run_moves_the_policy(straight: tuple[World, Life]) -> None:
    life = straight[1]
    assert life.finished
    first, last = life.published[0], life.final_weights
    assert any(not np.array_equal(first[name], last[name]) for name in first)


def stopped(version: int, stopping: threading.Event) -> None:
    if version == 2:
        stopping.set()


def killed(version: int, stopping: threading.Event) -> None:
    if version == 2:
        raise Killed


@pytest.mark.slow
@pytest.mark.parametrize("end", [stopped, killed])
def test_a_run_that_ended_goes_on_as_if_it_had_not(
    end: Callable[[int, threading.Event], None],
    straight: tuple[World, Life],
    new_world: Callable[[], World],
) -> None:
    world = new_world()
    world.live(at_version=end)
    resumed, whole = world.live(resume=True), straight[1]
    assert resumed.finished
    for name, array in whole.final_weights.items():
        assert np.array_equal(array, resumed.final_weights[name]), name
    assert world.reward.pictures == straight[0].reward.pictures
