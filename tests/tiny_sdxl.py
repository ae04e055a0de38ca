"""Untrained pipelines of SDXL's form: two text encoders, pooled text and sizes, tiny.

`student` is as SSD-1B-LCM is: its UNet takes the guidance scale as an embedding.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from deploy.shapes.models import (
    MAX_TOKENS,
    new_scheduler,
    new_text_encoder,
    new_tokenizer,
    new_vae,
)

WIDTH_1, WIDTH_2, POOLED = 64, 32, 24


def new_unet_xl(**overrides: Any) -> UNet2DConditionModel:
    """A plain block without attention first, then cross-attention, as SDXL has it."""
    structure: dict[str, Any] = {
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": WIDTH_1 + WIDTH_2,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(structure | overrides))


def new_second_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """The encoder whose pooled output SDXL takes."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH_2,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=POOLED,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def save_sdxl(folder: Path) -> tuple[Path, Path]:
    """Writes the 50-step pipeline and its LCM; returns both folders."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer(folder / "tokenizer")
    parts: dict[str, Any] = {
        "vae": new_vae(),
        "text_encoder": new_text_encoder(tokenizer),
        "text_encoder_2": new_second_encoder(tokenizer),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": False,
    }
    scheduler: Any = EulerDiscreteScheduler.from_config(
        new_scheduler().config, timestep_spacing="leading"
    )
    base = StableDiffusionXLPipeline(unet=new_unet_xl(), scheduler=scheduler, **parts)
    base.save_pretrained(folder / "base")
    unet = new_unet_xl(time_cond_proj_dim=8)
    unet.load_state_dict(base.unet.state_dict(), strict=False)
    student = StableDiffusionXLPipeline(
        unet=unet, scheduler=LCMScheduler.from_config(scheduler.config), **parts
    )
    student.save_pretrained(folder / "lcm")
    return folder / "base", folder / "lcm"
