"""What policies share that are improved from their own steps: networks asked about them again.

Shape suffixes: B rows of this rank, C H W latent.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from learner.engine import Engine
from learner.methods.updates import CountedUpdates
from learner.policy.denoiser import Network
from learner.policy.text import Encode, Text
from learner.settings.on_policy import OnPolicy
from learner.transitions import Transitions

AskEps = Callable[[Network, Tensor, Tensor, Text, Text], Tensor]
"""A network, latents [B, C, H, W], t_B, text and empty text -> its guided noise."""


class GaussianChain(Protocol):
    """A sampler's steps as Gaussians."""

    def times(self, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps that a step's network call is made at, and of what follows, int64 [B]."""
        ...

    def moments(self, x: Tensor, eps: Tensor, step_B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, C, H, W] and standard deviation [B, 1, 1, 1] of what follows."""
        ...


class Asking(CountedUpdates):
    """Networks, asked about steps.

    Args:
        engine: of the policy's `Denoiser`.
        ask: how a network is asked for its noise.
    """

    def __init__(
        self,
        settings: OnPolicy,
        engine: Engine,
        chain: GaussianChain,
        encode: Encode,
        ask: AskEps,
    ) -> None:
        super().__init__(engine, settings.micro_batches)
        self._chain = chain
        self._encode = encode
        self._ask = ask

    @torch.no_grad()
    def remembered(self, taken: Transitions, *, rows_at_once: int) -> Transitions:
        """With the noise that the policy tells now: no update may come before."""
        parts = [
            self._eps(self._engine.module, taken.rows(range(i, min(i + rows_at_once, len(taken)))))
            for i in range(0, len(taken), rows_at_once)
        ]
        return taken.remembering(torch.cat([part.cpu() for part in parts]))

    def _moments(self, network: Network, batch: Transitions) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what a network says that steps lead to."""
        x = batch.latents_BCHW.to(self._engine.device)
        return self._chain.moments(x, self._eps(network, batch), batch.step_B)

    def _old_mean(self, batch: Transitions) -> Tensor:
        """Of the version that sampled them."""
        assert batch.old_eps_BCHW is not None
        x, eps = (part.to(self._engine.device) for part in (batch.latents_BCHW, batch.old_eps_BCHW))
        return self._chain.moments(x, eps, batch.step_B)[0]

    def _eps(self, network: Network, batch: Transitions) -> Tensor:
        device = self._engine.device
        text = self._encode(list(batch.prompts)).to(device)
        empty = self._encode([""] * len(batch)).to(device)
        t_B, _ = self._chain.times(batch.step_B)
        return self._ask(network, batch.latents_BCHW.to(device), t_B.to(device), text, empty)
