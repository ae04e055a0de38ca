"""The first and the last evaluation of a run, whose evaluator is lost or late."""

from pathlib import Path
from typing import Any

import pytest

from deploy.run.ranks import RunFailedError
from tests.unit.monitor_world import SCORE, World


def test_a_first_evaluation_that_loses_its_evaluator_is_begun_again(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.evaluator.losses = 3
    for _ in range(4):
        world.look(0)
    assert (world.evaluator.replaced, world.steps) == (3, [0])


def test_a_first_evaluation_that_is_waited_for_at_the_end_is_begun_again(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.evaluator.losses = 3
    assert world.monitor.conclude(["last"], 1).after == {SCORE: 0.2}
    assert (world.monitor.before, world.evaluator.replaced) == ({SCORE: 0.1}, 3)


def test_a_first_evaluation_that_is_always_late_ends_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.evaluator.stays_late = True
    world.evaluator.replace()
    for _ in range(3):
        world.look(0)
    with pytest.raises(RunFailedError, match=r"the first .* 3 times.*evaluation\.timeout_s"):
        world.look(0)


def test_a_first_evaluation_that_raises_ends_the_run_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.evaluator.broken = True
    with pytest.raises(RunFailedError, match="no device"):
        world.look(0)


def test_an_end_that_loses_its_evaluator_is_made_by_the_next_one(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.publish(0)
    world.evaluator.losses = 3
    result = world.monitor.conclude(["last"], 1)
    assert (result.after, result.exported) == ({SCORE: 0.2}, "adapter")


def test_a_last_evaluation_that_always_loses_its_evaluator_ends_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, [0.1, 0.2])
    world.publish(0)
    measure = world.evaluator.measure

    def lost(moment: str, source: Any) -> Any:
        world.evaluator.losses = 1
        return measure(moment, source)

    world.evaluator.measure = lost  # type: ignore[method-assign]
    with pytest.raises(RunFailedError, match=r"the last evaluation .* 3 times.*timeout_s"):
        world.monitor.conclude(["last"], 1)
    assert (world.evaluator.replaced, world.evaluator.exported) == (4, [["last"]])
