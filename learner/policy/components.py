"""The parts of a Stable-Diffusion-family pipeline, each loaded only where it is used.

A sampler needs the UNet and the text encoder, a reward server only the VAE. Latents here are
scaled (times the VAE's scaling factor), so that they have about unit variance.
Shape suffixes: B rows, C H W latent channels, height, width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from learner.diffusion.few_steps import FewStepChain, FewSteps, few_step_chain
from learner.diffusion.schedule import NoiseSchedule
from learner.policy.lora import fuse_lora
from learner.policy.precision import computing_in
from learner.policy.sources import local_folder, part_folder, variant_of
from learner.policy.text import PromptEncoder
from learner.settings.model import Model
from learner.settings.types import Precision

Attention = Literal["sdpa", "plain"]


@dataclass(frozen=True)
class PipelineFolder:
    """Where a pipeline's parts lie and what their configs say; loads no weights by itself.

    Args:
        path: a local folder as `DiffusionPipeline.save_pretrained` writes it.
        unet_path: of the UNet, where that is another's.
        vae_path: likewise of the VAE.
        lcm_lora: folder or hub id of a LoRA that is fused into the UNet.
        size: height and width of pictures in pixels; None: those that the UNet was built for.
        sampler: of a model of few steps; None: the one that the scheduler's config tells.
        text_cache_bytes: of prompts' states that are kept.
        text_retires: whether text encoders leave their device once they know all prompts.
        slices, tiles: whether the VAE decodes picture by picture, and a large one in tiles.
    """

    path: Path
    unet_path: Path | None = None
    vae_path: Path | None = None
    lcm_lora: str | None = None
    size: tuple[int, int] | None = None
    sampler: FewSteps | None = None
    text_cache_bytes: int = 2**29
    text_retires: bool = False
    slices: bool = False
    tiles: bool = False

    @classmethod
    def locate(cls, path_or_id: str) -> "PipelineFolder":
        """A local folder, or a hub id that is downloaded.

        Raises:
            ValueError: nothing there that looks like a pipeline.
        """
        path = local_folder(path_or_id, holds="a model_index.json", whole_pipeline=True)
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is not a pipeline folder: it has no model_index.json")
        return cls(path)

    @classmethod
    def of(cls, model: Model) -> "PipelineFolder":
        """The policy's, as the run config's `model` section asks.

        Raises:
            ValueError: a part is not there, or pictures cannot have the size that is asked for.
        """
        found = replace(
            cls.locate(model.path),
            unet_path=part_folder(model.unet, "unet") if model.unet else None,
            vae_path=part_folder(model.vae, "vae") if model.vae else None,
            lcm_lora=model.lcm_lora,
            size=model.size,
            sampler=None if model.sampler == "auto" else model.sampler,
            text_cache_bytes=round(model.text_cache_mb * 2**20),
            text_retires=model.text_encoders == "retire",
            slices=model.vae_slicing,
            tiles=model.vae_tiling,
        )
        factor = found.pixels_per_latent
        if model.size is not None and any(side % factor for side in model.size):
            raise ValueError(
                f"model.height and model.width are {model.size[0]} and {model.size[1]}; they must "
                f"be multiples of {factor}, the pixels of one latent"
            )
        return found

    @classmethod
    def teacher_of(cls, model: Model) -> "PipelineFolder":
        """The teacher's; without one, the policy's own.

        Raises:
            ValueError: as `of`.
        """
        return cls.of(model) if model.teacher is None else cls.locate(model.teacher)

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        return json.loads((self._folder(part) / name).read_text())

    def _folder(self, part: str) -> Path:
        own = {"unet": self.unet_path, "vae": self.vae_path}.get(part)
        return own or self.path / part

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_config(self.config("scheduler", "scheduler_config.json"))

    def few_steps(self) -> FewSteps:
        """How it is sampled in few steps; see `Model.sampler`."""
        if self.sampler is not None or self.lcm_lora is not None:
            return self.sampler or "consistency"
        told = self.config("scheduler", "scheduler_config.json")
        is_turbo = (
            told.get("_class_name") == "EulerAncestralDiscreteScheduler"
            and told.get("timestep_spacing") == "trailing"
        )
        return "ancestral" if is_turbo else "consistency"

    def few_step_chain(self, num_steps: int) -> FewStepChain:
        """Its sampler of few steps."""
        return few_step_chain(self.few_steps(), self.schedule, num_steps)

    @property
    def pixels_per_latent(self) -> int:
        """Along one side."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of pictures, in pixels."""
        if self.size is not None:
            return self.size
        sides = self.config("unet")["sample_size"]
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return height * self.pixels_per_latent, width * self.pixels_per_latent

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width = (side // self.pixels_per_latent for side in self.image_size)
        return self.config("unet")["in_channels"], height, width

    def unet(self, attention: Attention = "sdpa") -> UNet2DConditionModel:
        """The UNet in float32.

        Args:
            attention: 'plain' is quicker than the fused kernel on a CPU with few tokens.

        Raises:
            ValueError: the LoRA that is to be fused into it does not fit.
        """
        folder = self._folder("unet")
        unet = UNet2DConditionModel.from_pretrained(
            folder, torch_dtype=torch.float32, variant=variant_of(folder)
        )
        if self.lcm_lora is not None:
            fuse_lora(unet, self.lcm_lora)
        if attention == "plain":
            unet.set_attn_processor(AttnProcessor())
        return unet.eval()

    def vae(self, device: str = "cpu") -> AutoencoderKL:
        """The VAE in float32, which `round_frozen` can round: in float16, SDXL's own overflows."""
        folder = self._folder("vae")
        vae: Any = AutoencoderKL.from_pretrained(
            folder, torch_dtype=torch.float32, variant=variant_of(folder)
        )
        if self.slices:
            vae.enable_slicing()
        if self.tiles:
            vae.enable_tiling()
        return vae.eval().to(device)

    def prompt_encoder(
        self, device: torch.device | str = "cpu", prompts: Sequence[str] | None = None
    ) -> PromptEncoder:
        """Its text encoders, which encode and retire at once where that is asked for.

        Args:
            prompts: all that it will be asked for; None: not known, so that nothing retires.

        Raises:
            ValueError: as `PromptEncoder.retire`.
        """
        encode = PromptEncoder.load(
            self.path, str(device), image_size=self.image_size, kept_bytes=self.text_cache_bytes
        )
        if self.text_retires and prompts is not None:
            encode.retire(["", *prompts])
        return encode


def decode_images(
    vae: AutoencoderKL, latents_BCHW: Tensor, precision: Precision = "fp32"
) -> Tensor:
    """Images in [0, 1], float32 [B, 3, H, W], of scaled latents, with the gradient to these.

    The one place where a decoder's [-1, 1] becomes the [0, 1] that rewards take; where it leaves
    that range the image is cut, and there is no gradient.

    Args:
        precision: what the decoder computes in.
    """
    scaled_BCHW = latents_BCHW.to(vae.device, torch.float32) / vae.config["scaling_factor"]
    with computing_in(precision, scaled_BCHW.device):
        decoded: Any = vae.decode(scaled_BCHW)  # pyright: ignore[reportArgumentType]
    return ((decoded.sample.float() + 1) / 2).clamp(0, 1)


@torch.no_grad()
def decode_latents(
    vae: AutoencoderKL, latents_BCHW: Tensor, precision: Precision = "fp32"
) -> np.ndarray:
    """Pictures uint8 [B, H, W, 3] of scaled latents, in the order that they have in memory."""
    pixels = (decode_images(vae, latents_BCHW, precision) * 255).round().to(torch.uint8)
    # Laid out where they are computed, not by one thread of a CPU.
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
