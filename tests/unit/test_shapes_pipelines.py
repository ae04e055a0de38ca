"""The committed pipelines of the shapes world: what a newcomer downloads and trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from deploy.shapes.measure import draw, draw_prompts, load_pipeline
from deploy.shapes.models import PIPELINES
from reward_servers.binding import ShapesExact

_MAX_BYTES = 12 * 2**20


def _exact(folder: Path, *, steps: int, count: int) -> float:
    prompts = draw_prompts(count, seed=5, three=0.5)
    pictures = draw(load_pipeline(folder), prompts, steps=steps, guidance=3.0, seed=5)
    return float(np.mean(ShapesExact().score(pictures, prompts).values))


def test_all_pipelines_together_are_small() -> None:
    committed = [
        path
        for name in ("base", "lcm", "lcm-lora")
        for path in (PIPELINES / name).rglob("*")
        if path.is_file()
    ]
    assert sum(path.stat().st_size for path in committed) <= _MAX_BYTES


@pytest.mark.parametrize("name", ["base", "lcm"])
def test_weights_are_stored_as_float16_safetensors(name: str) -> None:
    from safetensors.torch import load_file

    files = list((PIPELINES / name).rglob("*.safetensors"))
    assert len(files) == 3
    assert all(t.dtype == torch.float16 for file in files for t in load_file(file).values())
    assert not list((PIPELINES / name).rglob("*.bin"))


@pytest.mark.parametrize("name", ["base", "lcm"])
def test_a_pipeline_loads_as_diffusers_loads_any(name: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(PIPELINES / name)
    image = pipeline(
        "a red circle left of a blue square", num_inference_steps=2, height=32, width=32
    ).images[0]
    assert image.size == (32, 32)


def test_the_two_step_model_leaves_room_for_training() -> None:
    assert 0.4 <= _exact(PIPELINES / "lcm", steps=2, count=256) <= 0.7


def test_one_step_is_worse_than_two() -> None:
    lcm = PIPELINES / "lcm"
    assert _exact(lcm, steps=1, count=128) < _exact(lcm, steps=2, count=128)


def test_the_adapter_makes_a_few_step_model_of_the_base() -> None:
    pipeline = load_pipeline(PIPELINES / "base", PIPELINES / "lcm-lora")
    prompts = draw_prompts(64, seed=5, three=0.5)
    pictures = draw(pipeline, prompts, steps=4, guidance=1.0, seed=5)
    assert float(np.mean(ShapesExact().score(pictures, prompts).values)) > 0.4


@pytest.mark.slow
def test_the_fifty_step_base_knows_the_binding() -> None:
    assert _exact(PIPELINES / "base", steps=50, count=256) >= 0.88
