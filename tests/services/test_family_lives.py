"""Every model family: trained, stopped, resumed, exported, and loaded by diffusers."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from actors.rollout import ManyStepPolicy
from actors.sampling import sample_few_steps
from buffer.embedded import EmbeddedServer
from deploy.run.policy_build import policy_of
from deploy.settings.run_config import load_config
from learner.policy.components import PipelineFolder
from learner.policy.trainable import load_arrays, save_for_diffusers, trainable_unet
from learner.settings.model import Model
from tests.fifty_steps import clean_of, take_table
from tests.services.many_step_world import ManyStepWorld
from tests.services.training_world import PROMPTS, SEED, Life, World
from tests.tiny_families import FAMILIES, Family, save_families
from tests.tiny_sdxl import save_sdxl

pytestmark = [
    pytest.mark.redis,
    pytest.mark.slow,
    # What diffusers, transformers and peft say of each other's loaders is not ours to mend.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return save_families(tmp_path_factory.mktemp("families"))


def _stop_at_2(version: int, stopping: threading.Event) -> None:
    if version == 2:
        stopping.set()


def _resumed(world: World, first: Life) -> dict[str, np.ndarray]:
    """The weights of a second life that begins where the first one ended, at its end."""
    second = world.live(resume=True)
    assert second.finished
    start = min(second.published)
    resumed = second.published[start]
    for array, before in zip(resumed.values(), first.published[start].values(), strict=True):
        np.testing.assert_array_equal(array, before)
    weights = second.final_weights
    assert max(float(np.abs(weights[n] - resumed[n]).max()) for n in weights) > 1e-4
    return weights


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_life(
    server: EmbeddedServer,
    one_rank: None,
    families: dict[str, Family],
    name: str,
    tmp_path: Path,
) -> None:
    family = families[name]
    world = World(server.url, f"life-{name}", tmp_path, tmp_path, other_model=family.model)
    first = world.live(at_version=_stop_at_2)
    assert not first.finished
    weights = _resumed(world, first)

    pipeline = PipelineFolder.of(family.model)
    unet = trainable_unet(pipeline, family.model, seed=SEED)
    load_arrays(unet, weights)
    by_diffusers = family.pipeline()
    by_diffusers.load_lora_weights(str(save_for_diffusers(unet, "lora", tmp_path)))
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(1, *pipeline.latent_shape, generator=generator) for _ in range(2)]
    generator.manual_seed(3)
    theirs = by_diffusers(
        PROMPTS[0],
        latents=torch.randn(1, *pipeline.latent_shape, generator=generator),
        generator=generator,
        num_inference_steps=2,
        guidance_scale=8.0 if family.model.unet is not None else 0.0,
        output_type="latent",
    ).images
    config = load_config("deploy/configs/smoke.yaml", ["name=n"])
    config = config.model_copy(update={"model": family.model, "seed": SEED})
    policy = policy_of(config, pipeline, group_size=1)
    policy.load(weights)
    with torch.no_grad():
        ours = sample_few_steps(
            policy.network,
            pipeline.few_step_chain(2),
            policy.encode([PROMPTS[0]]),
            noise[0],
            noise[1:],
            policy._guidance(1),  # pyright: ignore
        )[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_the_life_of_a_fifty_step_model_of_sdxls_form(
    server: EmbeddedServer, one_rank: None, tmp_path: Path
) -> None:
    base, _ = save_sdxl(tmp_path / "sdxl")
    model = Model(path=str(base), num_steps=50, lora_rank=2, lora_alpha=2, guidance_scale=5.0)
    world = ManyStepWorld(server.url, "life-sdxl-50", tmp_path, tmp_path, other_model=model)
    first = world.live(at_version=_stop_at_2)
    assert not first.finished
    weights = _resumed(world, first)

    pipeline = PipelineFolder.of(model)
    unet = trainable_unet(pipeline, model, seed=SEED)
    load_arrays(unet, weights)
    by_diffusers: Any = StableDiffusionXLPipeline.from_pretrained(base, torch_dtype=torch.float32)
    by_diffusers.load_lora_weights(str(save_for_diffusers(unet, "lora", tmp_path)))
    scheduler: Any = DDIMScheduler.from_config(
        by_diffusers.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    take_table(scheduler, pipeline.schedule)
    by_diffusers.scheduler = scheduler
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(1, *pipeline.latent_shape, generator=generator) for _ in range(51)]
    generator.manual_seed(3)
    theirs = by_diffusers(
        PROMPTS[0],
        latents=torch.randn(1, *pipeline.latent_shape, generator=generator),
        generator=generator,
        num_inference_steps=50,
        guidance_scale=5.0,
        eta=1.0,
        output_type="latent",
    ).images
    config = load_config("deploy/configs/smoke-sqdf.yaml", ["name=n"])
    config = config.model_copy(update={"model": model, "seed": SEED})
    policy = policy_of(config, pipeline, group_size=1, only_clean=True)
    policy.load(weights)
    assert isinstance(policy, ManyStepPolicy)
    ours = clean_of(policy, PROMPTS[0], noise)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
