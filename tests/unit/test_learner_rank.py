"""A rank of the learner, where what it is to do does not work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from actors.slot import reason_of_end as ended_with
from deploy.run.build import LearnerRank
from deploy.run.parts import RunParts
from deploy.run.ranks import reason_of
from deploy.run.shared_folder import SharedFolder
from deploy.settings.run_config import load_config
from learner import checkpoint
from learner.journal import Journal


class SilentRank(LearnerRank):
    """A rank of a cluster without a policy board."""

    def _publish(self, version: int, weights: dict[str, np.ndarray]) -> None:
        """There is nobody to tell."""


class OutOfMemory:
    """A method whose second cycle asks for more than the GPU has."""

    prepared = True

    def __init__(self, cycles: int = 3) -> None:
        self.cycles = cycles
        self.journal = Journal()

    def improve(self, cycle: int) -> None:
        self.journal.enter("policy steps")
        if cycle == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.journal.record("policy", cycle, {"loss": 1.0})

    def adapt(self, cycle: int, *, last: bool) -> None:
        """Nothing is learned from samples."""

    def weights(self) -> dict[str, np.ndarray]:
        return {}

    final_weights = weights

    def save(self, folder: Path) -> None:
        """All fits JSON."""

    def state(self) -> dict[str, int]:
        return {}


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the rank has left the others."""
    left: list[bool] = []
    monkeypatch.setattr("learner.engine.join_ranks", lambda *_, **__: None)
    monkeypatch.setattr("learner.engine.leave_ranks", lambda: left.append(True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return left


@pytest.fixture
def rank(tmp_path: Path) -> LearnerRank:
    config = load_config("deploy/configs/smoke.yaml", ["name=n", "learner.sample_trace=false"])
    (tmp_path / "cluster.json").write_text(json.dumps({"start": "now"}))
    parts = RunParts(config, None, SharedFolder(tmp_path, "now"))  # pyright: ignore
    return SilentRank(parts, 0, None)


def test_a_rank_that_raises_tells_it_before_it_leaves_the_others(
    left: list[bool], rank: LearnerRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NCCL to leave is to wait for the others, who wait for this one."""

    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("deploy.run.build_method.build_method", refuse)
    with pytest.raises(RuntimeError, match="out of memory"):
        rank.run("127.0.0.1", 1, resume=False)
    assert left == []


def test_a_rank_that_has_trained_to_its_end_leaves_the_others(
    left: list[bool], rank: LearnerRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.run.build_method.build_method", lambda *_: OutOfMemory(cycles=1))
    assert rank.run("127.0.0.1", 1, resume=False)
    assert left == [True]


@pytest.fixture
def broken(
    left: list[bool], rank: LearnerRank, monkeypatch: pytest.MonkeyPatch
) -> torch.OutOfMemoryError:
    """What the rank raises whose memory was full in a step."""
    monkeypatch.setattr("deploy.run.build_method.build_method", lambda *_: OutOfMemory())
    with pytest.raises(torch.OutOfMemoryError) as caught:
        rank.run("127.0.0.1", 1, resume=False)
    return caught.value


def test_memory_that_is_full_in_a_step_is_told_before_the_others_are_left(
    broken: torch.OutOfMemoryError, left: list[bool]
) -> None:
    told = reason_of(RayTaskError("run", f"Traceback\n{broken!r}", broken))
    assert told == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert left == []


def test_a_gpu_that_was_lost_is_told_by_its_error_and_not_by_the_advice_behind_it() -> None:
    advice = "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
    cause = RuntimeError(f"CUDA error: unspecified launch failure\n{advice}\n")
    told = RayTaskError("run", "Traceback", cause)
    assert reason_of(told) == "RuntimeError: CUDA error: unspecified launch failure"
    assert ended_with(told) == "RuntimeError: CUDA error: unspecified launch failure"


def test_a_rank_whose_memory_was_full_still_tells_where_it_was_and_what_it_had_learned(
    broken: torch.OutOfMemoryError, rank: LearnerRank
) -> None:
    report = rank.report()
    assert (report["stage"], report["cycle"]) == ("policy steps", 1)
    assert [row["step"] for row in report["rows"]] == [0]


def test_memory_that_is_full_in_a_step_costs_no_whole_cycle(
    broken: torch.OutOfMemoryError, tmp_path: Path
) -> None:
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert checkpoint.place_of(newest) == (1, False)
