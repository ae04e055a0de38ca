"""The networks of a run on torch's meta device: their shapes, and no numbers.

Built from the configs of a pipeline's folder, or from those that `deploy/doctor/architectures`
holds of published models, by the functions that learner and samplers are built with. The same
functions make them with random numbers on any other device.
Shape suffixes: B rows, C H W latent, L tokens, E width of a token's state, P pooled state.
"""

import json
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from deploy.settings.run_config import RunConfig
from learner.policy.components import Attention, decode_images
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.precision import leave_casts_to_autocast
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.policy.views import policy_over, shared_view
from learner.settings.model import Model
from learner.surrogate import surrogate_by

Device = torch.device | str
T = TypeVar("T")
ARCHITECTURES = Path(__file__).parent / "architectures"
_LCM_LORA_RANK = 64
"""Of lcm-lora-sdv1-5, lcm-lora-sdxl and lcm-lora-ssd-1b (arXiv:2311.05556, table 1, tells their
sizes)."""


@dataclass(frozen=True)
class Architecture:
    """The configs of a pipeline's networks, as diffusers and transformers write them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]


def architecture(path: str, *, setting: str = "model.path") -> Architecture:
    """Of a pipeline's folder, or of a hub id whose configs are in `deploy/doctor/architectures`.

    Raises:
        ValueError: neither, or a folder that lacks one of the configs.
    """
    folder = Path(path)
    if folder.is_dir():
        encoders = ["text_encoder", "text_encoder_2"]
        present = [name for name in encoders if (folder / name).is_dir()] or encoders[:1]
        unet, vae = (_config(folder / part / "config.json", setting) for part in ("unet", "vae"))
        texts = tuple(_config(folder / name / "config.json", setting) for name in present)
        return Architecture(unet, vae, texts)
    parts = _known(path, "unet", setting)
    return Architecture(_unet(parts), _shipped(parts["vae"]), _text_encoders(parts))


def architecture_of(model: Model) -> Architecture:
    """Of the policy's pipeline, with the parts that a `model` section puts into it.

    Raises:
        ValueError: as `architecture`.
    """
    parts = architecture(model.path)
    if model.unet is not None:
        parts = replace(parts, unet=_part(model.unet, "unet"))
    if model.vae is not None:
        parts = replace(parts, vae=_part(model.vae, "vae"))
    return parts


def _part(path: str, part: str) -> dict[str, Any]:
    """The config of one network: of a folder, of a pipeline's, or of a hub id."""
    folder, setting = Path(path), f"model.{part}"
    if folder.is_dir():
        own = folder / "config.json"
        return _config(own if own.is_file() else folder / part / "config.json", setting)
    known = _known(path, part, setting)
    return _unet(known) if part == "unet" else _shipped(known[part])


def _known(path: str, part: str, setting: str) -> dict[str, Any]:
    models = {name: parts for name, parts in _shipped("models").items() if part in parts}
    if path not in models:
        raise ValueError(
            f"{setting}: {path!r} is no folder here, and its sizes are not known; give a folder "
            f"that diffusers' save_pretrained wrote, or one of {', '.join(models)}"
        )
    return models[path]


def clip_config(hub_id: str) -> CLIPConfig | None:
    """Of a CLIP that rewards take, whose towers' configs are in `deploy/doctor/architectures`."""
    towers = _shipped("models").get(hub_id, {}).get("clip")
    if towers is None:
        return None
    vision, text = map(_shipped, towers)
    width = text["projection_dim"]
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)


def _unet(parts: dict[str, Any]) -> dict[str, Any]:
    return {**_shipped(parts["unet"]), **parts.get("changes", {})}


def _text_encoders(parts: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple(map(_shipped, parts["text_encoders"]))


def _shipped(name: str) -> dict[str, Any]:
    return json.loads((ARCHITECTURES / f"{name}.json").read_text(encoding="utf-8"))


def _config(path: Path, setting: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{setting}: cannot read {path}: {error}; give a folder that diffusers' "
            "save_pretrained wrote"
        ) from error


def unet_of(parts: Architecture, attention: Attention, device: Device) -> UNet2DConditionModel:
    """As `PipelineFolder.unet` has it, but frozen, and with the random numbers of torch's seed."""
    with torch.device(device):
        unet: Any = UNet2DConditionModel.from_config(parts.unet)
    if attention == "plain":
        unet.set_attn_processor(AttnProcessor())
    return unet.eval().requires_grad_(False)


def vae_of(parts: Architecture, device: Device) -> AutoencoderKL:
    """Likewise as `PipelineFolder.vae` has it."""
    with torch.device(device):
        vae: Any = AutoencoderKL.from_config(parts.vae)
    return vae.eval().requires_grad_(False)


def text_encoders_of(parts: Architecture, device: Device) -> list[Any]:
    """Likewise of the one or two that a prompt passes."""
    kinds: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    with torch.device(device):
        encoders = [
            kind(CLIPTextConfig(**told))
            for kind, told in zip(kinds, parts.text_encoders, strict=False)
        ]
    return [encoder.eval().requires_grad_(False) for encoder in encoders]


def unet_on_meta(parts: Architecture, model: Model) -> UNet2DConditionModel:
    """As `PipelineFolder.unet` has it, frozen and without numbers."""
    return unet_of(parts, model.attention, "meta")


def with_consistency(base: UNet2DConditionModel, lora: str) -> UNet2DConditionModel:
    """A view of a base with a frozen adapter of an LCM-LoRA's shapes and random numbers.

    Args:
        lora: its rank is read from a folder here; that of a hub id is taken to be the published
            ones', 64.

    Raises:
        ValueError: a folder without a LoRA.
    """
    view = shared_view(base)
    rank = _lora_rank(Path(lora)) if Path(lora).is_dir() else _LCM_LORA_RANK
    with torch.device(base.device):
        make_trainable(view, "lora", rank=rank, alpha=rank, targets="all")
    return view.requires_grad_(False).eval()


def _lora_rank(folder: Path) -> int:
    """Of the first matrix of an adapter in safetensors."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  no mapping
                if name.endswith((".lora_A.weight", ".lora.down.weight", ".lora_down.weight")):
                    return weights.get_slice(name).get_shape()[0]
    raise ValueError(
        f"method.clean.lora: {folder} holds no LoRA in safetensors; give a folder with one, or a "
        "hub id"
    )


def policy_on_meta(config: RunConfig, base: UNet2DConditionModel) -> UNet2DConditionModel:
    """The policy over a base, with what is trained of it."""
    with torch.device("meta"):
        return policy_over(base, config.model, seed=config.seed)


def parameters_of(module: nn.Module, *, trained: bool = False) -> int:
    """How many numbers its parameters have, or those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


class Networks:
    """All networks of a run, and calls of them on rows without numbers.

    Attributes:
        base: the untouched UNet.
        policy: over it, with what is trained.
        consistency: over it, with an LCM-LoRA; where SQDF tells clean latents by one.
        teacher: where the method distils from one or its surrogate copies one's blocks.
        surrogate: where one is learned.

    Raises:
        ValueError: the sizes of a model are not known.
    """

    def __init__(self, config: RunConfig) -> None:
        model = config.model
        self._guidance_scale = model.guidance_scale
        parts = architecture_of(model)
        self.base = unet_on_meta(parts, model)
        self.policy = policy_on_meta(config, self.base)
        self.vae = vae_of(parts, "meta")
        if model.vae_slicing:
            self.vae.enable_slicing()
        self._latent_size = latent_size(model, parts)
        self._parts = parts
        self._encoders: list[Any] = [CLIPTextConfig(**told) for told in parts.text_encoders]
        self.consistency: UNet2DConditionModel | None = None
        if (lora := config.method.consistency_lora) is not None:
            self.consistency = with_consistency(self.base, lora)
        self.teacher: UNet2DConditionModel | None = None
        if config.method.needs_teacher(model.is_few_step):
            told = architecture(model.teacher, setting="model.teacher") if model.teacher else parts
            self.teacher = unet_on_meta(told, model)
        self.surrogate = _surrogate(config, self.teacher or self.base)
        for unet in filter(None, (self.policy, self.consistency)):
            leave_casts_to_autocast(unet)
        self._known: dict[Hashable, Any] = {}

    def once(self, what: Hashable, count: Callable[[], T]) -> T:
        """What a count of these networks gave when it was made first."""
        if what not in self._known:
            self._known[what] = count()
        return self._known[what]

    def latents(self, rows: int, *, with_gradient: bool = False) -> Tensor:
        """[B, C, H, W]."""
        shape = (rows, self.base.config["in_channels"], *self._latent_size)
        return torch.empty(shape, device="meta", requires_grad=with_gradient)

    def text(self, rows: int) -> Text:
        """What the UNet is told of prompts."""
        first, *second = self._encoders
        tokens = first.max_position_embeddings
        width = self.base.config["cross_attention_dim"]
        states_BLE = torch.empty(rows, tokens, width, device="meta")
        if not second:
            return Text(states_BLE)
        pooled_BP = torch.empty(rows, second[0].projection_dim, device="meta")
        return Text(states_BLE, pooled_BP, torch.empty(rows, 6, device="meta"))

    def ask(self, unet: UNet2DConditionModel, x_BCHW: Tensor) -> Tensor:
        """A UNet's noise."""
        rows = len(x_BCHW)
        dim = unet.config["time_cond_proj_dim"]
        guidance = guidance_rows(self._guidance_scale, dim, rows, "meta")
        t_B = torch.zeros(rows, dtype=torch.long, device="meta")
        return Denoiser(unet)(x_BCHW, t_B, self.text(rows), guidance)

    def decode(self, x_BCHW: Tensor) -> Tensor:
        """Images."""
        return decode_images(self.vae, x_BCHW)

    def score(self, x_BCHW: Tensor) -> Tensor:
        """The surrogate's scores."""
        assert self.surrogate is not None, "this method learns no surrogate"
        rows = len(x_BCHW)
        step_B = torch.zeros(rows, dtype=torch.long, device="meta")
        return self.surrogate(x_BCHW, self.text(rows), step_B)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a decoded picture."""
        factor = 2 ** (len(self._parts.vae["block_out_channels"]) - 1)
        height, width = self._latent_size
        return factor * height, factor * width

    @property
    def consistency_params(self) -> int:
        """Of an LCM-LoRA alone; the base below it is shared."""
        if self.consistency is None:
            return 0
        return parameters_of(self.consistency) - parameters_of(self.base)

    @property
    def text_encoder_params(self) -> int:
        """Of all text encoders."""
        return sum(map(parameters_of, text_encoders_of(self._parts, "meta")))


def latent_size(model: Model, parts: Architecture) -> tuple[int, int]:
    """Height and width of a latent."""
    if model.size is None:
        sides = parts.unet["sample_size"]
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return height, width
    factor = 2 ** (len(parts.vae["block_out_channels"]) - 1)
    return model.size[0] // factor, model.size[1] // factor


def _surrogate(config: RunConfig, unet: UNet2DConditionModel) -> nn.Module | None:
    if (learning := config.alternation) is None:
        return None
    num_steps = config.rewarded_steps if learning.tells_steps else 1
    # On the meta device all is counted in float32.
    options = learning.surrogate.model_copy(update={"precision": "fp32"})
    with torch.device("meta"):
        return surrogate_by(options, unet, num_steps=num_steps, seed=config.seed)
