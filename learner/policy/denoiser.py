"""A UNet as its engine and the samplers call it."""

from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class Denoiser(nn.Module):
    """A UNet as eps(x, t, text, guidance embedding): one signature for engine and sampler."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, x: Tensor, t_B: Tensor, text_BLE: Tensor, guidance_BE: Tensor | None
    ) -> Tensor:
        return self.unet(x, t_B, encoder_hidden_states=text_BLE, timestep_cond=guidance_BE).sample
