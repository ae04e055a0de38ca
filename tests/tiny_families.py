"""Untrained pipelines of each model family's structure, tiny, as diffusers saves them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from deploy.drills.tiny import save_tiny_pipelines
from deploy.shapes.models import new_scheduler
from learner.policy.trainable import make_trainable, save_for_diffusers
from learner.settings.model import Model
from tests.tiny_sdxl import new_unet_xl, save_sdxl

FLOAT = torch.float32
FAMILIES = ("sd15-lcm", "sdxl-lcm", "ssd1b", "turbo")


def new_ssd_unet(**overrides: Any) -> UNet2DConditionModel:
    """SSD-1B's: three blocks of uneven depth, no attention in the middle."""
    return new_unet_xl(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        transformer_layers_per_block=(1, (1, 1), (2, 1)),
        reverse_transformer_layers_per_block=((2, 1, 2), (1, 1, 1), 1),
        attention_head_dim=(2, 4, 4),
        **overrides,
    )


@dataclass(frozen=True)
class Family:
    """A few-step model: the section that names it, and diffusers' own way to the same one."""

    model: Model

    def pipeline(self) -> Any:
        """By diffusers alone, as its documentation has it for each family."""
        model = self.model
        parts: dict[str, Any] = {}
        if model.unet is not None:
            parts["unet"] = UNet2DConditionModel.from_pretrained(model.unet, torch_dtype=FLOAT)
        pipeline: Any = DiffusionPipeline.from_pretrained(model.path, torch_dtype=FLOAT, **parts)
        pipeline.set_progress_bar_config(disable=True)
        if model.lcm_lora is not None:
            pipeline.load_lora_weights(model.lcm_lora)
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
        if model.lcm_lora is not None or model.unet is not None:
            pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        return pipeline


def _lora(unet: UNet2DConditionModel, folder: Path) -> str:
    """A LoRA on all layers that changes something, whose alpha is not its rank."""
    for parameter in make_trainable(unet, "lora", rank=2, alpha=3.0, targets="all", seed=5):
        torch.nn.init.normal_(parameter, std=0.05)
    return str(save_for_diffusers(unet, "lora", folder))


def save_families(folder: Path) -> dict[str, Family]:
    """Writes all of them; by name."""
    save_tiny_pipelines(folder / "sd15")
    sdxl, _ = save_sdxl(folder / "sdxl")
    torch.manual_seed(1)
    xl: Any = StableDiffusionXLPipeline.from_pretrained(sdxl)
    turbo: Any = StableDiffusionXLPipeline(
        **{**xl.components, "scheduler": _ancestral()}, add_watermarker=False
    )
    turbo.save_pretrained(folder / "turbo")
    scheduler: Any = EulerDiscreteScheduler.from_config(xl.scheduler.config)
    ssd: Any = StableDiffusionXLPipeline(
        **{**xl.components, "unet": new_ssd_unet(), "scheduler": scheduler}, add_watermarker=False
    )
    ssd.save_pretrained(folder / "ssd")
    new_ssd_unet(time_cond_proj_dim=8).save_pretrained(folder / "lcm-ssd")
    sd15 = str(folder / "sd15" / "base")
    loras = {
        name: _lora(
            UNet2DConditionModel.from_pretrained(path, subfolder="unet", torch_dtype=FLOAT),
            folder / name,
        )
        for name, path in (("sd15-lora", sd15), ("sdxl-lora", sdxl))
    }
    small: dict[str, Any] = {"num_steps": 2, "lora_rank": 2, "lora_alpha": 3.0}
    models = {
        "sd15-lcm": Model(path=sd15, lcm_lora=loras["sd15-lora"], teacher=sd15, **small),
        "sdxl-lcm": Model(path=str(sdxl), lcm_lora=loras["sdxl-lora"], teacher=str(sdxl), **small),
        "ssd1b": Model(
            path=str(folder / "ssd"),
            unet=str(folder / "lcm-ssd"),
            teacher=str(folder / "ssd"),
            guidance_scale=8.0,
            **small,
        ),
        "turbo": Model(path=str(folder / "turbo"), teacher=str(sdxl), **small),
    }
    return {name: Family(model) for name, model in models.items()}


def _ancestral() -> EulerAncestralDiscreteScheduler:
    """As SDXL-Turbo has it."""
    told = {
        name: value
        for name, value in new_scheduler().config.items()
        if name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")
    }
    return EulerAncestralDiscreteScheduler(**told, timestep_spacing="trailing")


def with_steps(family: Family, num_steps: int) -> Family:
    """The same, drawn in another number of steps."""
    model = Model.model_validate(family.model.model_dump() | {"num_steps": num_steps})
    return dataclasses.replace(family, model=model)
