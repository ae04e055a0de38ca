"""PPO's policy step under an engine: steps of the newest trajectories in, one update out.

Shape suffixes: B rows of this rank, C H W latent.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from learner.diffusion.ddim import gaussian_kl
from learner.engine import Engine
from learner.methods.ddpo import clipped_loss, log_ratio
from learner.methods.updates import update_in_parts
from learner.policy.text import Text
from learner.ppo_settings import Ppo
from learner.transitions import Transitions

Network = Callable[..., Tensor]
Encode = Callable[[list[str]], Text]
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


@dataclass(frozen=True)
class PpoState:
    """What a policy step carries to the next, beside weights and optimizer."""

    step: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class PpoPolicy:
    """The policy under its engine, and the steps that improve it.

    Args:
        engine: of a `Denoiser`.
        ask: how a network is asked for its noise.
        reference: the untouched network, frozen; None without a KL.
    """

    def __init__(
        self,
        settings: Ppo,
        engine: Engine,
        chain: GaussianChain,
        encode: Encode,
        ask: AskEps,
        reference: Network | None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._chain = chain
        self._encode = encode
        self._ask = ask
        self._reference = reference
        self.state = PpoState()

    @torch.no_grad()
    def remembered(self, taken: Transitions, *, rows_at_once: int) -> Transitions:
        """With the noise that the policy tells now: no update may come before."""
        parts = [
            self._eps(self._engine.module, taken.rows(range(i, min(i + rows_at_once, len(taken)))))
            for i in range(0, len(taken), rows_at_once)
        ]
        return taken.remembering(torch.cat([part.cpu() for part in parts]))

    def step(self, batch: Transitions) -> dict[str, float]:
        """One update from rows of this rank; returns its metrics."""
        metrics = update_in_parts(
            self._engine,
            self._settings.micro_batches,
            lambda rows: self._loss(batch.rows(range(len(batch))[rows])),
        )
        self.state = PpoState(self.state.step + 1)
        return metrics

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        settings, device = self._settings, self._engine.device
        assert batch.old_eps_BCHW is not None
        x, noise = batch.latents_BCHW.to(device), batch.noise_BCHW.to(device)
        mean, std = self._chain.moments(x, self._eps(self._engine, batch), batch.step_B)
        old_mean, _ = self._chain.moments(x, batch.old_eps_BCHW.to(device), batch.step_B)
        log_ratio_B = log_ratio(mean, old_mean, std, noise)
        clipped = clipped_loss(log_ratio_B, batch.advantage_B.to(device), settings.ratio_clip)
        loss_B = clipped.loss_B
        metrics = {
            "ratio": float(log_ratio_B.detach().exp().mean()),
            "clip_fraction": clipped.share,
            "policy_loss": float(loss_B.detach().mean()),
        }
        if self._reference is not None:
            with torch.no_grad():
                ref_mean, _ = self._chain.moments(
                    x, self._eps(self._reference, batch), batch.step_B
                )
            kl_B = gaussian_kl(mean, ref_mean, std, reduce=settings.kl_reduce)
            loss_B = loss_B + settings.alpha * kl_B
            nats_B = gaussian_kl(mean.detach(), ref_mean, std)
            metrics["kl_nats"] = float(nats_B.mean())
            metrics["kl_penalty"] = settings.alpha * float(kl_B.detach().mean())
        return (batch.weight_B.to(device) * loss_B).mean(), metrics

    def _eps(self, network: Network, batch: Transitions) -> Tensor:
        device = self._engine.device
        text = self._encode(list(batch.prompts)).to(device)
        empty = self._encode([""] * len(batch)).to(device)
        t_B, _ = self._chain.times(batch.step_B)
        return self._ask(network, batch.latents_BCHW.to(device), t_B.to(device), text, empty)
