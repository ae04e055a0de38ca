"""How well a pipeline of the shapes world binds colours, shapes and places.

    python -m deploy.shapes.measure deploy/shapes/pipelines/lcm --steps 1 2 4 8

draws held-out prompts, or with --seen others, with the pipeline itself, as any diffusers user
would, and prints one line of JSON: the share of exact pictures and the mean graded reward by number
of steps.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from diffusers.models.attention_processor import AttnProcessor

from deploy.shapes.world import draw_scene
from reward_servers.binding import ShapesBinding, ShapesExact


def draw_prompts(count: int, seed: int, *, three: float, held_out: bool = True) -> list[str]:
    """Prompts with at least one combination that no training picture shows, or with none."""
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, held_out=held_out, three=three).prompt for _ in range(count)]


def load_pipeline(folder: Path, lora: Path | None = None) -> DiffusionPipeline:
    """A pipeline in float32, quiet, with the attention that is quick on a CPU.

    Args:
        lora: an adapter that makes a model of few steps of it.
    """
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    if lora is not None:
        pipeline.load_lora_weights(lora)
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.unet.set_attn_processor(AttnProcessor())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: DiffusionPipeline, prompts: list[str], *, steps: int, guidance: float, seed: int
) -> np.ndarray:
    """Pictures uint8 [N, 32, 32, 3], drawn in batches of 128."""
    generator = torch.Generator().manual_seed(seed)
    pictures = []
    for start in range(0, len(prompts), 128):
        options = {"eta": 1.0} if "eta" in pipeline.__call__.__code__.co_varnames else {}
        images = pipeline(
            prompts[start : start + 128],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=32,
            width=32,
            generator=generator,
            output_type="np",
            **options,
        ).images
        pictures.append(np.round(images * 255).astype(np.uint8))
    return np.concatenate(pictures)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.shapes.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lora", type=Path, help="a few-step adapter to load over the pipeline")
    parser.add_argument("--steps", type=int, nargs="+", default=[50])
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--three", type=float, default=0.5, help="share of three-thing prompts")
    parser.add_argument("--seen", action="store_true", help="prompts without held-out combinations")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipeline = load_pipeline(arguments.folder, arguments.lora)
    prompts = draw_prompts(
        arguments.samples, arguments.seed, three=arguments.three, held_out=not arguments.seen
    )
    things = np.array([prompt.count(" and ") for prompt in prompts])
    result: dict[str, object] = {"folder": str(arguments.folder), "guidance": arguments.guidance}
    for steps in arguments.steps:
        pictures = draw(
            pipeline, prompts, steps=steps, guidance=arguments.guidance, seed=arguments.seed
        )
        exact = ShapesExact().score(pictures, prompts).values
        graded = ShapesBinding().score(pictures, prompts).values
        result[f"exact_{steps}step"] = round(float(exact.mean()), 4)
        result[f"exact_{steps}step_two_things"] = round(float(exact[things == 0].mean()), 4)
        result[f"exact_{steps}step_three_things"] = round(float(exact[things == 1].mean()), 4)
        result[f"reward_{steps}step"] = round(float(graded.mean()), 4)
    print(json.dumps(result))  # noqa: T201


if __name__ == "__main__":
    main()
