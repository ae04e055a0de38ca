"""What networks compute in. What leaves a network is float32, and so is all that is trained.

Autocast rounds weights to bf16 at every call, and remembers none that nobody trains: of a large
UNet it would move gigabytes a call, and a graph would hold a second copy of it. `round_frozen`
rounds those once, which gives the same bits.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import nn

from learner.settings.types import Precision

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weight and bias autocast rounds."""


@cache
def computes_bf16(device: str) -> bool:
    """Whether a type of device has instructions for bfloat16; without, it is far slower."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def resolves_to_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether networks compute in bf16 on a device.

    torch knows no autocast for meta tensors, which are shapes without numbers: they stay float32.
    """
    if device.type == "meta":
        return False
    return precision == "bf16" or (precision == "auto" and computes_bf16(device.type))


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within it, products and convolutions on a device are of that precision."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=resolves_to_bf16(precision, device))


def roundable(network: nn.Module, *, trained: bool = False) -> Iterator[nn.Parameter]:
    """Weights and biases that products and convolutions take in bf16 alone, where that is computed
    in. Not those of adapters, which are small.

    Args:
        trained: those that need a gradient as well.
    """
    for name, module in network.named_modules():
        if isinstance(module, _PRODUCTS) and "lora_" not in name:
            own = module.parameters(recurse=False)
            yield from (p for p in own if trained or not p.requires_grad)


def round_frozen(network: nn.Module, precision: Precision, *, trained: bool = False) -> None:
    """Rounds what autocast would round at every call, once and in place; nothing in fp32.

    The network must be called within `computing_in` from then on. Whatever shares these weights
    has them so too, so first copy what is to be trained or merged.

    Args:
        network: on one device.
        trained: round weights that need a gradient as well, where nobody trains them.
    """
    if not resolves_to_bf16(precision, next(network.parameters()).device):
        return
    for parameter in roundable(network, trained=trained):
        parameter.data = parameter.data.to(torch.bfloat16)
    leave_casts_to_autocast(network)


def leave_casts_to_autocast(network: nn.Module) -> None:
    """Else peft casts an adapter's input to the type of its weights, and autocast casts it back."""
    for module in network.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportArgumentType]
