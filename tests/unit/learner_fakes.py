"""An engine by hand, and text states of prompts without a text encoder."""

import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deploy.shapes.models import new_unet
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.policy.views import shared_view


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


class Brightness(nn.Module):
    """A reward without a product of matrices."""

    def forward(self, images_BCHW: Tensor, prompts: list[str]) -> Tensor:
        return images_BCHW.flatten(1).mean(dim=1)

    def score(self, images_BHWC: Any, prompts: list[str]) -> Any:
        return images_BHWC.mean(axis=(1, 2, 3), dtype="float32")


def base(**overrides: Any) -> Any:
    """An untouched network with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return new_unet(**overrides).requires_grad_(False).eval()


def adapted(unet: Any, std: float = 0.05) -> Denoiser:
    """A policy over it that differs from its reference already."""
    view = shared_view(unet)
    for i, parameter in enumerate(make_trainable(view, "lora", rank=2, alpha=2, seed=1)):
        nn.init.normal_(parameter, std=std, generator=torch.Generator().manual_seed(i))
    return Denoiser(view)


def gradients(engine: HandEngine) -> list[Tensor]:
    """Of what is trained."""
    return [p.grad for p in engine.module.parameters() if p.requires_grad and p.grad is not None]


def assert_down(loss: Tensor, network: Denoiser, engine: HandEngine) -> None:
    """That what an engine was told is the gradient of a loss on a network by itself."""
    trained = [p for p in network.parameters() if p.requires_grad]
    for mine, other in zip(gradients(engine), torch.autograd.grad(loss, trained), strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * largest)


def encode(prompts: list[str]) -> Text:
    """Text states of a prompt: noise that it always gets again."""
    seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
    return Text(
        torch.stack(
            [torch.randn(5, 64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        )
    )
