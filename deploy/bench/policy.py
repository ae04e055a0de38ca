"""Sampling, decoding and judging pictures, each on one pipeline and one batch.

The sampler's reference is diffusers' own pipeline on the same model: the same prompts, batch and
number of steps, latents only on both sides. The sampler remembers the text states of prompts that
it has seen, so the pipeline is timed both with prompts and with states that were made before.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.utils.logging import disable_progress_bar

from actors.rollout import FewStepPolicy, Group
from deploy.bench.timing import Way, Work, again_and_again
from deploy.shapes.world import draw_scene, render
from learner.policy.components import PipelineFolder, decode_latents
from learner.policy.denoiser import Denoiser
from reward_servers.binding import ShapesBinding, ShapesExact
from reward_servers.jpeg import JpegSize

GROUPS, GROUP_SIZE, NUM_STEPS, GUIDANCE = 8, 6, 2, 4.0
PICTURES = 96


def sampler(path: Path) -> Iterator[Work]:
    """Latents of a two-step model."""
    prompts = _prompts(GROUPS)
    groups = [Group(ticket, prompt, seed=ticket) for ticket, prompt in enumerate(prompts)]
    policy = _policy(PipelineFolder.locate(str(path)))
    disable_progress_bar()
    pipeline = LatentConsistencyModelPipeline.from_pretrained(path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows = [prompt for prompt in prompts for _ in range(GROUP_SIZE)]
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(rows, torch.device("cpu"), 1, False)
    common = {
        "num_inference_steps": NUM_STEPS,
        "guidance_scale": GUIDANCE,
        "output_type": "latent",
        "return_dict": False,
    }
    yield Work(
        f"{len(rows)} images, {NUM_STEPS} steps",
        [
            Way("fleetune", again_and_again(lambda: policy.sample(groups))),
            Way("diffusers, prompts", again_and_again(lambda: pipeline(prompt=rows, **common))),
            Way(
                "diffusers, text states",
                again_and_again(lambda: pipeline(prompt_embeds=states, **common)),
            ),
        ],
        {"images": float(len(rows))},
    )


def decode(path: Path) -> Iterator[Work]:
    """Latents to uint8 pictures; the reference is the VAE alone, floats out."""
    folder = PipelineFolder.locate(str(path))
    vae = folder.vae()
    latents = torch.randn(PICTURES, *folder.latent_shape, generator=torch.manual_seed(0))

    @torch.no_grad()
    def alone() -> torch.Tensor:
        return vae.decode(latents / vae.config.scaling_factor).sample  # pyright: ignore

    yield Work(
        f"decode {PICTURES} images",
        [
            Way("fleetune", again_and_again(lambda: decode_latents(vae, latents))),
            Way("the VAE alone", again_and_again(alone)),
        ],
        {"images": float(PICTURES)},
    )


def rewards(_path: Path) -> Iterator[Work]:
    """Rewards of rendered scenes, which need no model."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, held_out=False) for _ in range(PICTURES)]
    images_BHWC = np.stack([render(scene, rng) for scene in scenes])
    prompts = [scene.prompt for scene in scenes]
    models = {
        "shapes-binding": ShapesBinding(),
        "shapes-exact": ShapesExact(),
        "jpeg-size": JpegSize(),
    }
    for name, model in models.items():

        def score(model: ShapesBinding | ShapesExact | JpegSize = model) -> object:
            return model.score(images_BHWC, prompts)

        yield Work(
            f"score {PICTURES} images",
            [Way(name, again_and_again(score))],
            {"images": float(PICTURES)},
        )


def _prompts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [draw_scene(rng, held_out=False).prompt for _ in range(count)]


def _policy(folder: PipelineFolder) -> FewStepPolicy:
    """The bare model, without an adapter, as the pipeline beside it has none."""
    unet = folder.unet()
    return FewStepPolicy(
        network=Denoiser(unet),
        encode=folder.prompt_encoder(),
        take=lambda weights: None,
        schedule=folder.schedule,
        latent_shape=folder.latent_shape,
        group_size=GROUP_SIZE,
        num_steps=NUM_STEPS,
        guidance_scale=GUIDANCE,
        guidance_dim=unet.config.time_cond_proj_dim,  # pyright: ignore
    )
