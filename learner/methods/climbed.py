"""What a policy climbs by its own gradient: a reward of clean latents.

Either a latent surrogate, for any reward, or differentiable rewards on decoded images.
Shape suffixes: B rows, C H W latent.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from learner.exploration import Climb
from learner.policy.components import decode_images
from learner.policy.text import Text
from learner.settings.types import Precision
from reward_servers.base import DifferentiableReward

RewardOf = Callable[[Tensor, Text, Sequence[str]], Tensor]
"""Clean latents [B, C, H, W], text, prompts -> rewards [B], with a gradient to the latents."""


class SurrogateReward:
    """What the surrogate says of the latent that a chain ends in."""

    def __init__(self, climb: Climb) -> None:
        self._climb = climb

    def __call__(self, x0_BCHW: Tensor, text: Text, prompts: Sequence[str]) -> Tensor:
        """Rewards [B]."""
        final_B = torch.zeros(len(x0_BCHW), dtype=torch.long, device=x0_BCHW.device)
        return self._climb(x0_BCHW, text, final_B)


class DecodedReward:
    """The weighted sum of differentiable rewards on decoded images.

    Args:
        vae: frozen.
        rewards: by name.
        weigh: what a reward's values add to the sum, from its name and them.
        precision: what the decoder computes in.
        checkpointing: compute the decoder's activations again in the backward pass.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        rewards: Mapping[str, DifferentiableReward],
        weigh: Callable[[str, Tensor], Tensor],
        *,
        precision: Precision = "fp32",
        checkpointing: bool = False,
    ) -> None:
        self._vae = vae
        self._precision: Precision = precision
        self._rewards = dict(rewards)
        self._weigh = weigh
        if checkpointing:
            vae.enable_gradient_checkpointing()
        for reward in self._rewards.values():
            assert isinstance(reward, nn.Module)
            reward.eval().requires_grad_(False).to(vae.device)

    def __call__(self, x0_BCHW: Tensor, text: Text, prompts: Sequence[str]) -> Tensor:
        """Rewards [B]."""
        images_BCHW = decode_images(self._vae, x0_BCHW, self._precision)
        values = [
            self._weigh(name, reward.forward(images_BCHW, prompts))
            for name, reward in self._rewards.items()
        ]
        return torch.stack(values).sum(dim=0)
