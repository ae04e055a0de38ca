"""PPO's policy step under an engine: steps of the newest trajectories in, one update out."""

import torch
from torch import Tensor

from learner.diffusion.ddim import gaussian_kl
from learner.engine import Engine
from learner.methods.ddpo import clipped_loss, log_ratio
from learner.methods.on_policy_policy import AskEps, Asking, GaussianChain
from learner.policy.denoiser import Network
from learner.policy.text import Encode
from learner.settings.on_policy import Ppo
from learner.transitions import Transitions


class PpoPolicy(Asking):
    """The policy under its engine, and the steps that improve it.

    Args:
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
        super().__init__(settings, engine, chain, encode, ask)
        self._settings = settings
        self._reference = reference

    def step(self, batch: Transitions) -> dict[str, float]:
        """One update from rows of this rank; returns its metrics."""
        return self._update(lambda rows: self._loss(batch.rows(range(len(batch))[rows])))

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        settings, device = self._settings, self._engine.device
        mean, std = self._moments(self._engine, batch)
        log_ratio_B = log_ratio(mean, self._old_mean(batch), std, batch.noise_BCHW.to(device))
        clipped = clipped_loss(log_ratio_B, batch.advantage_B.to(device), settings.ratio_clip)
        loss_B = clipped.loss_B
        metrics = {
            "ratio": float(log_ratio_B.detach().exp().mean()),
            "clip_fraction": clipped.share,
            "policy_loss": float(loss_B.detach().mean()),
        }
        if self._reference is not None:
            with torch.no_grad():
                ref_mean, _ = self._moments(self._reference, batch)
            kl_B = gaussian_kl(mean, ref_mean, std, reduce=settings.kl_reduce)
            loss_B = loss_B + settings.alpha * kl_B
            nats_B = gaussian_kl(mean.detach(), ref_mean, std)
            metrics["kl_nats"] = float(nats_B.mean())
            metrics["kl_penalty"] = settings.alpha * float(kl_B.detach().mean())
        return (batch.weight_B.to(device) * loss_B).mean(), metrics
