"""The whole pipeline of a `model` section, as diffusers runs it and a user would have it."""

import json
from typing import Any

import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler, LCMScheduler

from learner.policy.components import PipelineFolder
from learner.policy.sources import variant_of
from learner.settings.model import Model

_UNNEEDED = ("safety_checker", "feature_extractor", "image_encoder")


def whole_pipeline(model: Model) -> Any:
    """diffusers' own pipeline in float32, with the parts and the sampler that are asked for.

    A model of many steps keeps the scheduler that it was saved with.

    Raises:
        ValueError: a part is not there or does not fit.
        OSError: what diffusers says of files that it cannot read.
    """
    folder = PipelineFolder.of(model)
    parts: dict[str, Any] = {}
    if model.unet is not None or model.lcm_lora is not None:
        parts["unet"] = folder.unet()
    if model.vae is not None:
        parts["vae"] = folder.vae()
    index = json.loads((folder.path / "model_index.json").read_text())
    # Of a hub id nothing is downloaded that no picture needs.
    parts |= {
        name: None for name in _UNNEEDED if name in index and not (folder.path / name).is_dir()
    }
    pipeline: Any = DiffusionPipeline.from_pretrained(
        folder.path,
        torch_dtype=torch.float32,
        variant=variant_of(folder.path / "unet"),
        **parts,
    )
    if model.is_few_step:
        told = pipeline.scheduler.config
        if folder.few_steps() == "ancestral":
            pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
                told, timestep_spacing="trailing"
            )
        else:
            pipeline.scheduler = LCMScheduler.from_config(told)
    return pipeline


def sampling_arguments(model: Model, pipeline: Any) -> dict[str, Any]:
    """What its call is given, to draw as samplers here do."""
    given: dict[str, Any] = {
        "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
    }
    # Without an input for it, the guidance of a model of few steps is in its weights.
    if model.is_few_step and pipeline.unet.config.time_cond_proj_dim is None:
        given["guidance_scale"] = 1.0
    if model.size is not None:
        given["height"], given["width"] = model.size
    return given
