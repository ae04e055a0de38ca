"""The parts of a pipeline with random weights, made where they compute: no file, no hub.

Shapes are those of a pipeline's folder or of a published model (`deploy/doctor/architectures`);
what numbers the weights have changes neither time nor memory.
Shape suffixes: B images, H W pixels, N prompts, L tokens.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPConfig

from deploy.doctor.meta_networks import (
    Architecture,
    architecture,
    architecture_of,
    text_encoders_of,
    unet_of,
    vae_of,
    with_consistency,
)
from deploy.doctor.reward_networks import ClipShapes
from learner.policy.components import Attention, PipelineFolder
from learner.policy.text import PromptEncoder
from learner.settings.model import Model

_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Of Stable Diffusion 1.5 and of SDXL, and of what was made of them."""
_SAMPLED = {
    "stabilityai/sdxl-turbo": {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "timestep_spacing": "trailing",
    }
}
"""What tells that a model is not drawn as a consistency model."""


class RandomPipeline(PipelineFolder):
    """A pipeline that reads no weights: it is asked like the folder that it stands for."""

    _parts: Architecture
    _seed: int
    _device: str
    _was_half: bool

    @classmethod
    def like(
        cls, model: Model, *, seed: int, device: str, was_half: bool = False
    ) -> "RandomPipeline":
        """Of the shapes of folders or of published models.

        Args:
            device: where the UNet is made; VAE and text encoders are where they are asked for.
            was_half: the UNet's weights are numbers of float16, as those of some published files.

        Raises:
            ValueError: the sizes of the model are not known.
        """
        pipeline = cls(
            Path(model.path),
            lcm_lora=model.lcm_lora,
            size=model.size,
            sampler=None if model.sampler == "auto" else model.sampler,
            slices=model.vae_slicing,
            tiles=model.vae_tiling,
        )
        parts = architecture_of(model)
        # A frozen dataclass has no other way.
        own = {"_parts": parts, "_seed": seed, "_device": device, "_was_half": was_half}
        for name, value in own.items():
            object.__setattr__(pipeline, name, value)
        return pipeline

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """Of a part, or the noise schedule that all known models share."""
        if part == "scheduler" and not self.path.is_dir():
            return {**_SCHEDULER, **_SAMPLED.get(str(self.path), {})}
        if part == "scheduler":
            return json.loads((self.path / part / name).read_text(encoding="utf-8"))
        return {"unet": self._parts.unet, "vae": self._parts.vae}[part]

    def unet(self, attention: Attention = "sdpa") -> UNet2DConditionModel:
        """In float32, on the pipeline's device."""
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            unet = unet_of(self._parts, attention, self._device)
        if self._was_half:
            for parameter in unet.parameters():
                parameter.data = parameter.data.half().float()
        return unet.requires_grad_(True)

    def vae(self, device: str = "cpu") -> AutoencoderKL:
        """In float32."""
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            vae = vae_of(self._parts, device)
        if self.slices:
            vae.enable_slicing()
        if self.tiles:
            vae.enable_tiling()
        return vae

    def prompt_encoder(
        self, device: torch.device | str = "cpu", prompts: Sequence[str] | None = None
    ) -> PromptEncoder:
        """Text encoders whose tokens are drawn by the letters of a prompt."""
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            encoders = text_encoders_of(self._parts, device)
        towers: list[Any] = [(_Tokens(encoder.config), encoder) for encoder in encoders]
        if len(towers) == 1:
            return PromptEncoder(towers)
        return PromptEncoder(towers, image_size=self.image_size, zeros_when_empty=True)


class _Tokens:
    """Tokens of prompts: as many as a tokenizer pads to, of its whole vocabulary."""

    def __init__(self, config: Any) -> None:
        self.model_max_length: int = config.max_position_embeddings
        self._vocabulary: int = config.vocab_size

    def __call__(self, prompts: Sequence[str], **_how: object) -> SimpleNamespace:
        """Int64 [N, L], the same for the same prompt."""
        rows = [torch.Generator().manual_seed(zlib.crc32(prompt.encode())) for prompt in prompts]
        ids_NL = [
            torch.randint(self._vocabulary, (self.model_max_length,), generator=generator)
            for generator in rows
        ]
        return SimpleNamespace(input_ids=torch.stack(ids_NL))


def save_consistency_lora(path: str, lora: str, folder: Path) -> Path:
    """Writes an LCM-LoRA of random weights for a model into a folder, which loads as one.

    Args:
        lora: the one that it stands for.
    """
    view: Any = with_consistency(unet_of(architecture(path), "sdpa", "meta"), lora)
    shapes = {name: like.shape for name, like in get_peft_model_state_dict(view).items()}
    generator = torch.Generator().manual_seed(0)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={n: torch.randn(s, generator=generator) / 100 for n, s in shapes.items()},
        unet_lora_adapter_metadata=view.peft_config["default"].to_dict(),
    )
    return folder


class RandomClipReward(nn.Module):
    """Stands in for a reward on CLIP's features whose weights are not here: a head on them."""

    def __init__(self, told: CLIPConfig, device: str) -> None:
        super().__init__()
        self.clip = ClipShapes(told, device)
        self.head = nn.Linear(self.clip.width, 1, device=device)

    def forward(self, images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] of images in [0, 1], with the gradient to them."""
        return self.head(self.clip.images(images_BCHW))[:, 0]
