"""A LoRA that somebody else has trained: beside a UNet's weights, or in them."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

from learner.policy.sources import local_folder


def add_lora(unet: UNet2DConditionModel, path_or_id: str) -> None:
    """Adds a LoRA to a UNet, as a module beside each layer; frozen.

    Args:
        path_or_id: a local folder, or a hub id that is downloaded.

    Raises:
        ValueError: it holds no LoRA that fits.
    """
    folder = local_folder(path_or_id, holds="a LoRA in safetensors")
    loader: Any = StableDiffusionPipeline
    try:
        state, alphas, metadata = loader.lora_state_dict(
            str(folder), unet_config=unet.config, return_lora_metadata=True
        )
        loader.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no LoRA for this UNet: {error}") from error
    adapters = [name for name, _ in unet.named_parameters() if "lora_" in name]
    if not adapters:
        raise ValueError(f"{folder} holds no LoRA for this UNet: none of its names fits")
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(False)


@torch.no_grad()
def fuse_lora(unet: UNet2DConditionModel, path_or_id: str) -> None:
    """Adds a LoRA to the weights themselves, in which no trace of it is left.

    Raises:
        ValueError: it holds no LoRA that fits.
    """
    add_lora(unet, path_or_id)
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # pyright: ignore[reportAttributeAccessIssue]
            unet.set_submodule(name, layer.get_base_layer())
    # Adapters may be added as to a UNet that never had one.
    bare: Any = unet
    del bare.peft_config
    bare._hf_peft_config_loaded = False
