"""The parts of a Stable-Diffusion-family pipeline, each loaded only where it is used.

A sampler needs the UNet and the text encoder, a reward server only the VAE. Latents here are
scaled (times the VAE's scaling factor), so that they have about unit variance.
Shape suffixes: B rows, C H W latent channels, height, width.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from huggingface_hub import snapshot_download
from torch import Tensor

from learner.diffusion.schedule import NoiseSchedule
from learner.policy.text import PromptEncoder

Attention = Literal["sdpa", "plain"]


def local_folder(path_or_id: str, *, holds: str) -> Path:
    """A folder here, or what a hub id is downloaded to.

    Args:
        holds: what the folder is looked up for, for the error.

    Raises:
        ValueError: neither.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(path_or_id))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model at {path_or_id!r}: it is not a folder here, and the hub said: {error}. Give "
            f"a folder with {holds} or a hub id."
        ) from error


@dataclass(frozen=True)
class PipelineFolder:
    """Where a pipeline lies and what its configs say; loads no weights by itself.

    Args:
        path: a local folder as `DiffusionPipeline.save_pretrained` writes it.
    """

    path: Path

    @classmethod
    def locate(cls, path_or_id: str) -> "PipelineFolder":
        """A local folder, or a hub id that is downloaded.

        Raises:
            ValueError: nothing there that looks like a pipeline.
        """
        path = local_folder(path_or_id, holds="a model_index.json")
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is not a pipeline folder: it has no model_index.json")
        return cls(path)

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        return json.loads((self.path / part / name).read_text())

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_config(self.config("scheduler", "scheduler_config.json"))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents that the UNet was built for."""
        unet = self.config("unet")
        return unet["in_channels"], unet["sample_size"], unet["sample_size"]

    def unet(self, attention: Attention = "sdpa") -> UNet2DConditionModel:
        """The UNet in float32.

        Args:
            attention: 'plain' is quicker than the fused kernel on a CPU with few tokens.
        """
        unet = UNet2DConditionModel.from_pretrained(
            self.path, subfolder="unet", torch_dtype=torch.float32
        )
        if attention == "plain":
            unet.set_attn_processor(AttnProcessor())
        return unet.eval()

    def vae(self, device: str = "cpu") -> AutoencoderKL:
        vae: Any = AutoencoderKL.from_pretrained(
            self.path, subfolder="vae", torch_dtype=torch.float32
        )
        return vae.eval().to(device)

    def prompt_encoder(self, device: str = "cpu") -> PromptEncoder:
        return PromptEncoder.load(self.path, device)


def decode_images(vae: AutoencoderKL, latents_BCHW: Tensor) -> Tensor:
    """Images in [0, 1], float32 [B, 3, H, W], of scaled latents, with the gradient to these.

    The one place where a decoder's [-1, 1] becomes the [0, 1] that rewards take; where it leaves
    that range the image is cut, and there is no gradient.
    """
    latents_BCHW = latents_BCHW.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
    decoded: Any = vae.decode(latents_BCHW)  # pyright: ignore[reportArgumentType]
    return ((decoded.sample.float() + 1) / 2).clamp(0, 1)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents_BCHW: Tensor) -> np.ndarray:
    """Pictures uint8 [B, H, W, 3] of scaled latents."""
    pixels = (decode_images(vae, latents_BCHW) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
