"""What networks compute in. Weights stay float32, and so does what leaves a network."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from learner.settings.types import Precision


@cache
def computes_bf16(device: str) -> bool:
    """Whether a type of device has instructions for bfloat16; without, it is far slower."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within it, products and convolutions on a device are of that precision.

    torch knows no autocast for meta tensors, which are shapes without numbers: they stay float32.
    """
    if device.type == "meta":
        return nullcontext()
    is_bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device.type))
    return torch.autocast(device.type, torch.bfloat16, enabled=is_bf16)
