"""An engine by hand, and text states of prompts without a text encoder."""

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from learner.policy.text import Text


class HandEngine:
    """What a policy step asks of an engine: calls, and a gradient that stays to be looked at."""

    device = torch.device("cpu")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls = 0

    def __call__(self, *args: Any) -> Tensor:
        self.calls += 1
        return self.module(*args)

    def update(self, losses: Iterable[Tensor]) -> float:
        self.micro_batches = 0
        for loss in losses:
            loss.backward()
            self.micro_batches += 1
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.micro_batches
        return 0.0


def encode(prompts: list[str]) -> Text:
    """Text states of a prompt: noise that it always gets again."""
    seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
    return Text(
        torch.stack(
            [torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
    )
