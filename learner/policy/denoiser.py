"""A UNet as its engine and the samplers call it."""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from learner.diffusion.consistency import guidance_embedding
from learner.diffusion.ddim import guided
from learner.policy.precision import computing_in
from learner.policy.text import Text
from learner.settings.model import Model
from learner.settings.types import Precision

Network = Callable[..., Tensor]
"""x, t_B, text, and the guidance embedding that models of few steps may take -> its noise: a
`Denoiser`, bare or under its engine."""


class Denoiser(nn.Module):
    """A UNet as eps(x, t, text, guidance embedding): one signature for engine and sampler.

    Args:
        precision: what it computes in; ε has the type of x.
        compiled: by torch.compile, for each shape when it first comes.
    """

    def __init__(
        self, unet: UNet2DConditionModel, precision: Precision = "fp32", *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.unet = unet
        self.precision: Precision = precision
        if compiled:
            compile_in_place(unet)

    @classmethod
    def of(cls, unet: UNet2DConditionModel, model: Model) -> "Denoiser":
        """As the run config's `model` section asks."""
        return cls(unet, model.precision, compiled=model.compile)

    def forward(
        self, x: Tensor, t_B: Tensor, text: Text, guidance_BE: Tensor | None = None
    ) -> Tensor:
        """ε [B, C, H, W], in the type of x."""
        with computing_in(self.precision, x.device):
            predicted = self.unet(
                x,
                t_B.to(x.device),
                encoder_hidden_states=text.states_BLE,
                timestep_cond=guidance_BE,
                added_cond_kwargs=text.added,
            ).sample
        return predicted.to(x.dtype)


def compile_in_place(unet: UNet2DConditionModel) -> None:
    """Has its calls compiled; names of parameters stay as they are."""
    from torch._functorch import config

    # A graph is differentiated twice where a loss's gradient is measured before the step.
    config.donated_buffer = False
    unet.compile()


def guided_call(
    network: Network,
    x: Tensor,
    t_B: Tensor,
    text: Text,
    empty: Text,
    scale: float,
) -> Tensor:
    """ε with classifier-free guidance, in one doubled call; scale 1 needs no second half."""
    if scale == 1:
        return network(x, t_B, text)
    both = network(torch.cat([x, x]), torch.cat([t_B, t_B]), Text.cat([empty, text]))
    uncond, cond = both.chunk(2)
    return guided(cond, uncond, scale)


def guidance_rows(
    scale: float, dim: int | None, rows: int, device: torch.device | str
) -> Tensor | None:
    """The guidance scale as a model of few steps takes it; None for one that takes none.

    Args:
        dim: `time_cond_proj_dim` of its config.
    """
    if dim is None:
        return None
    return guidance_embedding(torch.full((rows,), scale - 1.0, device=device), dim)
