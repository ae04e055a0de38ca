"""What a process asks of torch for the GPU that it has booked, by what torch is told."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.run.gpu_share import keep_to_share, score_in_tf32

ROOT = Path(__file__).resolve().parents[2]


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


_BUILDS = """
import os, sys
from contextlib import suppress
from types import SimpleNamespace

os.environ.pop("CUDA_VISIBLE_DEVICES", None)
seen = []

def note(event, told):
    if event == "import" and told[0].partition(".")[0] in ("diffusers", "torch"):
        seen.append((told[0], os.environ.get("CUDA_VISIBLE_DEVICES")))

sys.addaudithook(note)
from deploy.evaluation.host import EvaluatorHost
from deploy.run.build import reward_server, sampler
from deploy.settings.run_config import load_config

config = load_config("deploy/configs/smoke.yaml", ["name=n"])
parts = SimpleNamespace(config=config, replay=None)
folder = SimpleNamespace(check=lambda what: None)
roles = {
    "sampler": lambda: sampler(parts, None, "a"),
    "reward server": lambda: reward_server(parts, "a"),
    "evaluator": lambda: EvaluatorHost(config, folder)._get(),
}
with suppress(Exception):
    roles[sys.argv[1]]()
assert any(name.startswith("diffusers") for name, _ in seen), seen
assert {hidden for name, hidden in seen if name.startswith("diffusers")} == {""}, seen
"""


@pytest.mark.parametrize("role", ["sampler", "reward server", "evaluator"])
def test_gpus_are_hidden_before_diffusers_looks_for_them(role: str) -> None:
    """A driver reads once which are visible; diffusers asks it as soon as it is imported."""
    command = [sys.executable, "-c", _BUILDS, role]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
