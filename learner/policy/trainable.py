"""Which weights of a UNet are trained, and how they travel and are saved.

Either a LoRA adapter or the whole UNet. What travels from learner to samplers is the dict of
trainable tensors as numpy arrays: a few MB for an adapter, and quicker through an object store
than torch tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from learner.policy.components import PipelineFolder
from learner.settings.model import Model

Kind = Literal["lora", "full"]
TARGETS = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    # The module names of the LCM-LoRA recipe.
    "all": [
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv",
        "time_emb_proj",
    ],
}  # fmt: skip


def make_trainable(
    unet: UNet2DConditionModel,
    kind: Kind,
    *,
    rank: int,
    alpha: float,
    targets: str | Sequence[str] = "all",
    seed: int = 0,
) -> list[torch.nn.Parameter]:
    """Freezes what is not trained, adds the adapter if asked; returns the trained parameters.

    Args:
        targets: a key of `TARGETS`, or module names.
        seed: of the adapter's initial values, so that samplers and learner agree.
    """
    if kind == "lora":
        unet.requires_grad_(False)
        modules = TARGETS[targets] if isinstance(targets, str) else list(targets)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
            target_modules=modules,
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet.add_adapter(config)
    else:
        unet.requires_grad_(True)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def trained_parameters(unet: UNet2DConditionModel) -> dict[str, torch.nn.Parameter]:
    """By name."""
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def trainable_arrays(unet: UNet2DConditionModel) -> dict[str, np.ndarray]:
    """Copies of the trained tensors, float32, by parameter name."""
    return {name: copied(parameter) for name, parameter in trained_parameters(unet).items()}


def copied(value: torch.Tensor) -> np.ndarray:
    """A float32 array of its own in C order, copied once: from a GPU it is a copy already."""
    array = value.detach().float().cpu()
    shares = array.data_ptr() == value.data_ptr()
    return array.numpy().copy() if shares else np.ascontiguousarray(array.numpy())


@torch.no_grad()
def load_arrays(unet: UNet2DConditionModel, arrays: dict[str, np.ndarray]) -> None:
    """Copies trained tensors into the UNet.

    Raises:
        ValueError: names or shapes are not those that this UNet trains; nothing was copied.
    """
    parameters = trained_parameters(unet)
    names = parameters.keys() ^ arrays.keys()
    shapes = [n for n, p in parameters.items() if n not in names and p.shape != arrays[n].shape]
    if names or shapes:
        raise ValueError(
            f"weights do not fit this model: {len(names)} names differ, {len(shapes)} have another "
            f"shape, e.g. {sorted([*names, *shapes])[:3]}; learner and sampler must be built from "
            "the same model section"
        )
    for name, parameter in parameters.items():
        # A copy, because arrays from an object store are read-only.
        parameter.copy_(torch.from_numpy(np.array(arrays[name])))


def save_for_diffusers(unet: UNet2DConditionModel, kind: Kind, folder: Path) -> Path:
    """Writes what diffusers loads: `pipe.load_lora_weights(folder)`, or a UNet folder.

    Returns:
        The folder written: `folder/adapter` or `folder/unet`.
    """
    if kind == "lora":
        target = folder / "adapter"
        StableDiffusionPipeline.save_lora_weights(
            target,
            unet_lora_layers={**get_peft_model_state_dict(unet)},
            # Without it, whoever loads the adapter takes its alpha to be its rank.
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )
    else:
        target = folder / "unet"
        unet.save_pretrained(target)
    return target


def trainable_unet(pipeline: PipelineFolder, model: Model, *, seed: int) -> UNet2DConditionModel:
    """The pipeline's UNet with its trained part as the run config's `model` section asks."""
    unet = pipeline.unet(model.attention)
    make_policy_trainable(unet, model, seed=seed)
    return unet


def make_policy_trainable(unet: UNet2DConditionModel, model: Model, *, seed: int) -> None:
    """`make_trainable` as the run config's `model` section asks."""
    make_trainable(
        unet,
        model.trainable,
        rank=model.lora_rank,
        alpha=model.lora_alpha,
        targets=model.lora_targets,
        seed=seed,
    )
