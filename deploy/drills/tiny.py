"""A model family that knows nothing: the shapes world's classes with random weights."""

from pathlib import Path


def save_tiny_pipelines(folder: Path) -> Path:
    """Writes `base`, a 50-step pipeline, and `lcm`, a two-step one, into a folder; returns it."""
    import torch

    from deploy.shapes.models import (
        consistency_pipeline,
        guided_pipeline,
        new_text_encoder,
        new_tokenizer,
        new_unet,
        new_vae,
        save_half,
    )

    torch.manual_seed(0)
    tokenizer = new_tokenizer(folder / "tokenizer")
    base = guided_pipeline(new_vae(), new_text_encoder(tokenizer), tokenizer, new_unet())
    save_half(base, folder / "base")
    save_half(consistency_pipeline(base, new_unet(time_cond_proj_dim=64)), folder / "lcm")
    return folder
