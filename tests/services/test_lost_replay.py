"""Runs whose replay was lost: what they leave out, and what they sample again."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from learner.checkpoint import newest, read_state
from learner.group_batch import GroupBatch
from learner.settings.draft import Draft
from learner.settings.sqdf import Sqdf
from learner.surrogate_training import SurrogateTrainer
from tests.services.many_step_world import DRAFT, LEARNS, SEIKO, SQDF, ManyStepWorld
from tests.services.training_world import Killed, Life, World

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("one_rank")]
CLIMBING = {
    "sqdf": SQDF,
    "draft": DRAFT,
    "seiko": SEIKO,
    "sqdf-surrogate": Sqdf.model_validate({**SQDF.model_dump(exclude_unset=True), **LEARNS}),
}


@pytest.fixture
def new_world(
    server: EmbeddedServer, pipelines: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    def make(kind: type[World], **changes: Any) -> World:
        folder = tmp_path_factory.mktemp("run")
        return kind(server.url, folder.name, folder, pipelines, **changes)

    return make


def killed(version: int, stopping: threading.Event) -> None:
    """After a whole cycle's checkpoint, once the policy steps of the next are taken."""
    if version == 2:
        raise Killed


def braked(life: Life) -> dict[int, Any]:
    """By cycle."""
    return {row["step"]: row["values"]["braked"] for row in life.rows if row["phase"] == "policy"}


@pytest.mark.parametrize(
    "method",
    [
        "sqdf",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("draft", "seiko", "sqdf-surrogate")),
    ],
)
def test_a_run_whose_replay_was_lost_leaves_one_cycles_policy_steps_out_and_goes_on(
    method: str, new_world: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    world = new_world(ManyStepWorld, climbing=CLIMBING[method])
    assert not world.live(at_version=killed).finished
    found = newest(world.folder)
    assert found is not None
    begun = read_state(found)["method"]["next_ticket"]
    world.replay().erase()
    life = world.live(resume=True)
    assert life.finished
    assert braked(life) == {1: 1.0, 2: 0.0}
    assert "cycle 1 leaves its policy steps out: no scored picture is in the replay" in caplog.text
    assert min(world.complete_groups()) == begun


@pytest.mark.parametrize(
    "settings",
    [pytest.param(None, id="lasro"), pytest.param(SEIKO, id="seiko", marks=pytest.mark.slow)],
)
def test_a_fit_whose_replay_was_lost_is_of_the_same_groups_again(
    settings: Draft | None, new_world: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Any:
        if settings is None:
            return new_world(World)
        return new_world(ManyStepWorld, climbing=settings)

    straight = make().live()
    world, held, steps = make(), list[threading.Event](), 0
    step_as_ever = SurrogateTrainer.step

    def step(trainer: SurrogateTrainer, batch: GroupBatch) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 2:
            held[0].set()
        return step_as_ever(trainer, batch)

    with monkeypatch.context() as patched:
        patched.setattr(SurrogateTrainer, "step", step)
        stopped = world.live(at_version=lambda version, stopping: held.append(stopping))
    assert (stopped.finished, steps) == (False, 2)
    world.replay().erase()
    life = world.live(resume=True)
    assert life.finished
    for name, array in straight.final_weights.items():
        assert np.array_equal(array, life.final_weights[name]), name
