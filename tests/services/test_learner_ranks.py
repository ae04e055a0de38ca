"""Ranks of the learner as real processes: equal weights, the same under every cut and stage.

What a rank does is told in rank_program.py.
"""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("rank_program.py")
ROOT = PROGRAM.parents[2]
LEARNING_RATE = 1e-3
# Adam turns a gradient that is zero but for rounding into a step of up to its learning rate.
ROUNDING = 0.2 * LEARNING_RATE

Told = dict[str, np.ndarray]
Launch = Callable[[int, str], list[Told]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(rank: int, ranks: int, port: int, stages: str, folder: Path) -> subprocess.Popen[str]:
    words = [rank, ranks, port, stages, folder]
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs that many ranks through the stages; what each of them told."""

    def run(ranks: int, stages: str) -> list[Told]:
        folder, port = tmp_path_factory.mktemp("ranks"), free_port()
        with ExitStack() as running:
            processes = []
            for rank in range(ranks):
                process = running.enter_context(start(rank, ranks, port, stages, folder))
                running.callback(process.kill)
                processes.append(process)
            outputs = [process.communicate(timeout=280)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)
        return [dict(np.load(folder / f"rank-{rank}.npz")) for rank in range(ranks)]

    return run


@pytest.fixture(scope="module")
def two(launch: Launch) -> list[Told]:
    return launch(2, "0")


@pytest.fixture(scope="module")
def one(launch: Launch) -> Told:
    return launch(1, "0")[0]


@pytest.fixture(scope="module")
def sharded(launch: Launch) -> list[Told]:
    """Two ranks under ZeRO 1 and 2."""
    return launch(2, "1,2")


def at(told: Told, moment: str, stage: str = "0") -> Told:
    """Name -> value at a moment."""
    prefix = f"{stage}/{moment}/"
    found = {name.removeprefix(prefix): told[name] for name in told if name.startswith(prefix)}
    assert found
    return found


def differing(one: Told, other: Told, *, at_most: float = 0.0) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if np.abs(one[name] - other[name]).max() > at_most]


def test_two_ranks_with_different_data_end_with_equal_weights(two: list[Told]) -> None:
    assert differing(at(two[0], "straight"), at(two[1], "straight")) == []


@pytest.mark.parametrize("part", ["policy", "surrogate"])
def test_a_step_moves_weights_of_both_engines(two: list[Told], part: str) -> None:
    moved = differing(at(two[0], "start"), at(two[0], "trained"))
    assert any(name.startswith(part) for name in moved)


@pytest.mark.slow
def test_two_ranks_end_where_one_does(two: list[Told], one: Told) -> None:
    assert differing(at(two[0], "straight"), at(one, "straight"), at_most=ROUNDING) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "gradient_norm",
        "surrogate_gradient_norm",
        "ranking_loss",
        "regression_loss",
        "anchor_weight",
        "anchor_loss",
        "surrogate_2step",
    ],
)
def test_two_ranks_tell_what_one_does(two: list[Told], one: Told, name: str) -> None:
    assert at(two[0], "metrics")[name] == pytest.approx(at(one, "metrics")[name], rel=1e-3)


def test_a_checkpoint_holds_the_exact_weights(two: list[Told]) -> None:
    assert differing(at(two[0], "trained"), at(two[0], "loaded")) == []


def test_a_step_after_loading_is_the_step_that_would_have_been(two: list[Told]) -> None:
    assert differing(at(two[0], "straight"), at(two[0], "resumed")) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_sharding_changes_no_weight(two: list[Told], sharded: list[Told], stage: str) -> None:
    weights = at(sharded[0], "straight", stage)
    assert differing(at(two[0], "straight"), weights, at_most=ROUNDING) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_sharded_ranks_end_with_equal_weights(sharded: list[Told], stage: str) -> None:
    rank_0, rank_1 = (at(told, "straight", stage) for told in sharded)
    assert differing(rank_0, rank_1) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_sharded_step_after_loading_is_the_step_that_would_have_been(
    sharded: list[Told], stage: str
) -> None:
    assert differing(at(sharded[0], "straight", stage), at(sharded[0], "resumed", stage)) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_every_stage_tells_the_gradient_norm(
    two: list[Told], sharded: list[Told], stage: str
) -> None:
    expected = float(at(two[0], "metrics")["gradient_norm"])
    told = float(at(sharded[0], "metrics", stage)["gradient_norm"])
    assert math.isclose(told, expected, rel_tol=1e-4)
