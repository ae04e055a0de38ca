"""A model family that knows nothing: the shapes world's classes with random weights."""

from pathlib import Path
from typing import Any


def save_tiny_pipelines(folder: Path) -> Path:
    """Writes `base`, a 50-step pipeline, and `lcm`, a two-step one, into a folder; returns it."""
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from deploy.shapes.models import (
        consistency_pipeline,
        new_text_encoder,
        new_tokenizer,
        new_unet,
        new_vae,
        save_half,
    )

    torch.manual_seed(0)
    tokenizer = new_tokenizer(folder / "tokenizer")
    parts: dict[str, Any] = {
        "vae": new_vae(),
        "text_encoder": new_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "unet": new_unet(),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    base = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    save_half(base, folder / "base")
    save_half(consistency_pipeline(base, new_unet(time_cond_proj_dim=64)), folder / "lcm")
    return folder
