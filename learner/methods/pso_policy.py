"""PSO's policy step under an engine: steps of better and worse trajectories in, one update out."""

import torch
from torch import Tensor

from learner.engine import Engine
from learner.methods.ddpo import log_ratio
from learner.methods.likelihood import pso_loss
from learner.methods.on_policy_policy import AskEps, Asking, GaussianChain
from learner.policy.denoiser import Network
from learner.policy.text import Encode
from learner.settings.on_policy import Pso
from learner.transitions import Transitions


class PsoPolicy(Asking):
    """The policy under its engine, and the steps that improve it.

    Args:
        reference: the untouched network, frozen.
    """

    def __init__(
        self,
        settings: Pso,
        engine: Engine,
        chain: GaussianChain,
        encode: Encode,
        ask: AskEps,
        reference: Network,
    ) -> None:
        super().__init__(settings, engine, chain, encode, ask)
        self._settings = settings
        self._reference = reference

    def step(self, batch: Transitions) -> dict[str, float]:
        """One update from pairs of this rank, the better ones first; returns its metrics."""
        pairs = len(batch) // 2

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, float]]:
            better = range(pairs)[rows]
            return self._loss(batch.rows([*better, *(pairs + row for row in better)]))

        return self._update(loss_of)

    def _loss(self, batch: Transitions) -> tuple[Tensor, dict[str, float]]:
        settings, noise = self._settings, batch.noise_BCHW.to(self._engine.device)
        mean, std = self._moments(self._engine, batch)
        with torch.no_grad():
            ref_mean, _ = self._moments(self._reference, batch)
            old_mean = self._old_mean(batch)
        # Both are of the action that was taken: their difference is log π − log π_ref of it.
        ref_log_B = log_ratio(ref_mean, old_mean, std, noise)
        log_rho_B = log_ratio(mean, old_mean, std, noise) - ref_log_B
        better_B, worse_B = log_rho_B.chunk(2)
        weight_B = batch.weight_B[: len(better_B)].to(better_B)
        loss = pso_loss(better_B, worse_B, weight_B, beta=settings.beta, clip=settings.ratio_clip)
        held_B = (log_rho_B.detach().exp() - 1).abs() > settings.ratio_clip
        return loss, {
            "pso_loss": float(loss.detach()),
            "preferred": float((better_B > worse_B).float().mean()),
            "clip_fraction": float(held_B.float().mean()),
        }
