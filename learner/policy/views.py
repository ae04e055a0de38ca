"""Several networks over one set of base weights: a policy, its reference and a consistency model.

Switching adapters of a single network turns the gradient of the policy's adapter off, and
gradient checkpointing then recomputes under the wrong one. Trees of their own that share their
base tensors cost no memory and know nothing of each other.
"""

import copy
from pathlib import Path
from typing import TypeVar

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn

M = TypeVar("M", bound=nn.Module)


def shared_view(module: M) -> M:
    """A copy of the module tree whose parameters and buffers are the module's own tensors.

    Adapters that are added to one tree later are not in the other. Make it before anything is
    added, and do not move one of them to another device alone.
    """
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def with_lora(unet: UNet2DConditionModel, folder: Path) -> UNet2DConditionModel:
    """A view of a UNet with a frozen LoRA from a folder on it, as an LCM-LoRA over its base.

    Raises:
        ValueError: the folder holds no LoRA that fits.
    """
    view = shared_view(unet)
    try:
        state, alphas = StableDiffusionPipeline.lora_state_dict(folder)  # pyright: ignore
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, view)  # pyright: ignore
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no LoRA for this UNet: {error}") from error
    adapters = [name for name, _ in view.named_parameters() if "lora_" in name]
    if not adapters:
        raise ValueError(f"{folder} holds no LoRA for this UNet: none of its names fits")
    for name, parameter in view.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)
    return view.eval()
