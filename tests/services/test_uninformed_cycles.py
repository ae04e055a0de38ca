"""Cycles of on-policy runs whose samples tell nothing: left out, resumed, and where they end."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.prompts import PromptSource
from buffer.embedded import EmbeddedServer
from learner.settings.on_policy import Ppo, Pso
from tests.services.training_world import PROMPTS, PSO, RLCM, SEED, Brightness, Killed, Life, World

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("one_rank")]
METHODS = {
    "rlcm": RLCM.model_copy(update={"groups_per_cycle": 1}),
    "pso": PSO.model_copy(update={"groups_per_cycle": 1}),
}
CYCLES = RLCM.cycles


def prompt_of(cycle: int) -> str:
    """Of the one group of a cycle; no two cycles have the same."""
    return PromptSource(PROMPTS, run_seed=SEED).prompt_of(cycle)


REWARDS: dict[str, Callable[[int], Brightness]] = {
    "all alike": lambda cycle: Brightness(flat_for=prompt_of(cycle)),
    "one failed": lambda cycle: Brightness(refused=prompt_of(cycle)),
}


@pytest.fixture
def new_world(
    server: EmbeddedServer, pipelines: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Ppo | Pso, Brightness], World]:
    def make(settings: Ppo | Pso, reward: Brightness) -> World:
        folder = tmp_path_factory.mktemp("run")
        return World(server.url, folder.name, folder, pipelines, reward, settings)

    return make


def braked(life: Life) -> dict[int, Any]:
    """By cycle."""
    return {row["step"]: row["values"]["braked"] for row in life.rows if row["phase"] == "policy"}


def moved(life: Life, cycle: int) -> bool:
    """Whether a cycle has changed the weights."""
    before, after = life.published[cycle], life.published[cycle + 1]
    return any(not np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("method", "reward", "cycle"),
    [
        ("pso", "all alike", 1),
        ("rlcm", "one failed", 1),
        ("rlcm", "all alike", 0),
        ("pso", "one failed", 0),
        *(
            pytest.param(method, reward, cycle, marks=pytest.mark.slow)
            for method, reward, cycle in (
                ("pso", "all alike", 0),
                ("rlcm", "one failed", 0),
                ("rlcm", "all alike", 1),
                ("pso", "one failed", 1),
            )
        ),
    ],
)
def test_a_cycle_that_tells_nothing_is_left_out_and_the_run_goes_on(
    method: str,
    reward: str,
    cycle: int,
    new_world: Callable[[Ppo | Pso, Brightness], World],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        life = new_world(METHODS[method], REWARDS[reward](cycle)).live()
    assert life.finished
    assert braked(life) == {number: float(number == cycle) for number in range(CYCLES)}
    assert [moved(life, number) for number in range(CYCLES)] == [n != cycle for n in range(CYCLES)]
    assert f"cycle {cycle} leaves its policy steps out: " in caplog.text


def killed(version: int, stopping: threading.Event) -> None:
    if version == 1:
        raise Killed


def stopped(version: int, stopping: threading.Event) -> None:
    if version == 1:
        stopping.set()


@pytest.mark.slow
@pytest.mark.parametrize("end", [stopped, killed])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_ends_beside_such_a_cycle_goes_on_as_if_it_had_not(
    end: Callable[[int, threading.Event], None],
    method: str,
    new_world: Callable[[Ppo | Pso, Brightness], World],
) -> None:
    straight = new_world(METHODS[method], REWARDS["one failed"](0)).live()
    world = new_world(METHODS[method], REWARDS["one failed"](0))
    world.live(at_version=end)
    resumed = world.live(resume=True)
    assert resumed.finished
    for name, array in straight.final_weights.items():
        assert np.array_equal(array, resumed.final_weights[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_tells_nothing_apart_ends_the_run_and_the_resumed_one_at_the_same_place(
    method: str, new_world: Callable[[Ppo | Pso, Brightness], World]
) -> None:
    world, published = new_world(METHODS[method], Brightness(flat=True)), list[int]()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"4 cycles in a row, up to cycle 3.* tell nothing"):
            world.live(resume=resume, at_version=lambda version, _: published.append(version))
    assert published == [0, 1, 2, 3, 3]
