"""The parts of a Stable-Diffusion-family pipeline, each loaded only where it is used.

A sampler needs the UNet and the text encoder, a reward server only the VAE. Latents here are
scaled (times the VAE's scaling factor), so that they have about unit variance.
Shape suffixes: B rows, C H W latent channels, height, width, L tokens, E embedding.
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
from transformers import CLIPTextModel, CLIPTokenizer

from learner.diffusion.schedule import NoiseSchedule

Attention = Literal["sdpa", "plain"]


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
        path = Path(path_or_id)
        if not path.is_dir():
            try:
                path = Path(snapshot_download(path_or_id))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"no model at {path_or_id!r}: it is not a folder here, and the hub said: "
                    f"{error}. Give a folder with a model_index.json or a hub id."
                ) from error
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

    def prompt_encoder(self, device: str = "cpu") -> "PromptEncoder":
        tokenizer = CLIPTokenizer.from_pretrained(self.path, subfolder="tokenizer")
        encoder: Any = CLIPTextModel.from_pretrained(
            self.path, subfolder="text_encoder", torch_dtype=torch.float32
        )
        return PromptEncoder(tokenizer, encoder.eval().requires_grad_(False).to(device))


class PromptEncoder:
    """Prompts to text states; those of the last few thousand prompts are kept.

    Args:
        kept_bytes: of states that are kept, on the encoder's device.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel, *, kept_bytes: int = 2**29
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._kept_bytes = kept_bytes
        self._states: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        """Text states, float32 [B, L, E]; the empty prompt is the unconditional one."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if new:
            tokens = self._tokenizer(
                new,
                padding="max_length",
                max_length=self._tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            ids = tokens.input_ids.to(self._encoder.device)
            # Clones, else one kept row would keep its whole batch.
            rows = [row.clone() for row in self._encoder(ids).last_hidden_state]
            self._states.update(zip(new, rows, strict=True))
        states_BLE = torch.stack([self._states[prompt] for prompt in prompts])
        while len(self._states) * states_BLE[0].nbytes > self._kept_bytes:
            del self._states[next(iter(self._states))]  # the oldest
        return states_BLE


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents_BCHW: Tensor) -> np.ndarray:
    """Pictures uint8 [B, H, W, 3] of scaled latents: the one place where pixels are made."""
    latents_BCHW = latents_BCHW.to(vae.device, vae.dtype) / vae.config["scaling_factor"]
    decoded: Any = vae.decode(latents_BCHW)  # pyright: ignore[reportArgumentType]
    images = decoded.sample.float().clamp(-1, 1)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
