"""What a process asks of torch for the GPU that it has booked, by what torch is told."""

import os
from typing import Any

import pytest
import torch

from deploy.run.gpu_share import keep_to_share, score_in_tf32


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch is told, as if it had a GPU."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", calls.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    return calls


@pytest.mark.parametrize(("num_gpus", "expected"), [(0, []), (0.25, [0.25]), (1, []), (2, [])])
def test_a_part_of_a_gpu_is_all_that_torch_may_take(
    num_gpus: float, expected: list[float], told: list[Any]
) -> None:
    keep_to_share(num_gpus)
    assert told == expected


@pytest.mark.parametrize(("num_gpus", "seen"), [(0, ""), (0.25, "3"), (1, "3")])
def test_a_gpu_that_is_not_booked_is_not_seen(
    num_gpus: float, seen: str, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    keep_to_share(num_gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize(("num_gpus", "expected"), [(0, []), (0.25, ["high"]), (1, ["high"])])
def test_scores_are_of_tf32_where_a_gpu_is_booked(
    num_gpus: float, expected: list[str], told: list[Any]
) -> None:
    score_in_tf32(num_gpus)
    assert told == expected


def test_without_a_gpu_torch_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch, told: list[Any]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    keep_to_share(0.5)
    score_in_tf32(0.5)
    assert told == []
