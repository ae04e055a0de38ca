"""SQDF's policy step under an engine: replayed states in, one update out.

Every random draw is a function of (seed, step), of the whole batch on every rank, so that cutting
the batch over ranks changes nothing but the order of a sum.
Shape suffixes: B rows of this rank, C H W latent.
"""

from typing import Any

import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.ddim import gaussian_kl
from learner.engine import Engine
from learner.methods.climbed import RewardOf
from learner.methods.sqdf import (
    Clean,
    adapted_alpha,
    clean_by_consistency,
    clean_by_ddim,
    clean_by_tweedie,
    discount_weights,
    kl_std,
    soft_q_loss,
    take_step,
)
from learner.methods.updates import CountedUpdates, Metrics, step_generator
from learner.policy.denoiser import Denoiser, Network, guided_call
from learner.policy.text import Encode, Text
from learner.seat import Seat
from learner.settings.sqdf import Sqdf
from learner.states import StateBatch


class SqdfPolicy(CountedUpdates):
    """The policy under its engine, and the steps that improve it.

    Args:
        engine: of a `Denoiser` of many steps.
        reference: the untouched network, frozen.
        consistency: a frozen consistency model; None where the reference tells clean latents.
        guidance_scale: of policy and reference; the consistency model has none.

    Attributes:
        alpha: weight of the KL in the next update.
    """

    def __init__(
        self,
        settings: Sqdf,
        engine: Engine,
        chain: Chain,
        encode: Encode,
        reference: Denoiser,
        consistency: Denoiser | None,
        reward: RewardOf,
        *,
        guidance_scale: float,
        seat: Seat,
    ) -> None:
        super().__init__(engine, settings.micro_batches)
        self._settings = settings
        self._chain = chain
        self._encode = encode
        self._reference = reference
        self._consistency = consistency
        self._reward = reward
        self._guidance_scale = guidance_scale
        self._seat = seat
        self.alpha = settings.alpha

    def to_json(self) -> dict[str, Any]:
        """With the weight of the KL."""
        return {**super().to_json(), "alpha": self.alpha}

    def from_json(self, state: dict[str, Any]) -> None:
        """Restores it; a weight that nothing steers is that of the settings."""
        super().from_json(state)
        self.alpha = self._settings.alpha if self._settings.target_kl is None else state["alpha"]

    def step(self, batch: StateBatch) -> dict[str, float]:
        """One update from states of this rank; returns its metrics."""
        noise = self._noise(batch.latents_BCHW)
        metrics = self._update(lambda rows: self._loss(batch.rows(rows), noise[rows]))
        if self._settings.target_kl is not None:
            self.alpha = adapted_alpha(self.alpha, metrics["kl_nats"], self._settings.target_kl)
        return metrics

    def _loss(self, batch: StateBatch, noise: Tensor) -> tuple[Tensor, Metrics]:
        settings, chain, device = self._settings, self._chain, self._engine.device
        # All that is copied is copied before the first network call, for which it would wait.
        x, step_B = batch.latents_BCHW.to(device), batch.step_B.to(device)
        noise = noise.to(x)
        text = self._encode(list(batch.prompts)).to(device)
        empty = self._encode([""] * len(text)).to(device)
        t_B = chain.times(step_B)[0]
        ref_eps = None if batch.ref_eps_BCHW is None else batch.ref_eps_BCHW.to(device)
        eps = self._guided(self._engine, x, t_B, text, empty)
        if ref_eps is None:
            with torch.no_grad():
                ref_eps = self._guided(self._reference, x, t_B, text, empty)
        taken = take_step(x, eps, ref_eps, noise, step_B, chain)
        clean = self._clean(text, empty)(taken.x_prev, step_B)
        reward_B = self._reward(clean, text, batch.prompts)
        std = kl_std(step_B, chain, x, settings.kl_std)
        kl_B = gaussian_kl(taken.mean, taken.ref_mean, std, reduce=settings.kl_reduce)
        weight_B = self._weights(step_B).to(reward_B)
        loss = soft_q_loss(
            reward_B, kl_B, weight_B, alpha=self.alpha, positive_only=settings.positive_only
        )
        nats = gaussian_kl(taken.mean.detach(), taken.ref_mean, taken.std)
        return loss, {
            "soft_q_loss": loss.detach(),
            f"{settings.reward}_reward": reward_B.detach().mean(),
            "weighted_reward": (weight_B * reward_B.detach()).mean(),
            "kl_nats": nats.mean(),
            "kl_penalty": self.alpha * kl_B.detach().mean(),
            "alpha": self.alpha,
        }

    def _weights(self, step_B: Tensor) -> Tensor:
        """γ^k, unless times were drawn in proportion to it already."""
        if self._settings.states.times == "discounted":
            return torch.ones_like(step_B, dtype=torch.float64)
        return discount_weights(step_B, self._chain, self._settings.discount)

    def _noise(self, x: Tensor) -> Tensor:
        """This rank's share of the step's noise, like its states."""
        generator = step_generator(self._seat.seed, self.steps_taken)
        shape = (self._settings.policy_batch, *x.shape[1:])
        return torch.randn(shape, generator=generator)[self._seat.share].to(x)

    def _clean(self, text: Text, empty: Text) -> Clean:
        by = self._settings.clean.by
        if by == "consistency":
            model = self._consistency
            assert model is not None
            return clean_by_consistency(lambda x, t_B: model(x, t_B, text), self._chain)

        def reference(x: Tensor, t_B: Tensor) -> Tensor:
            return self._guided(self._reference, x, t_B, text, empty)

        if by == "tweedie":
            return clean_by_tweedie(reference, self._chain)
        return clean_by_ddim(reference, self._chain, self._settings.clean.calls)

    def _guided(
        self,
        network: Network,
        x: Tensor,
        t_B: Tensor,
        text: Text,
        empty: Text,
    ) -> Tensor:
        return guided_call(network, x, t_B, text, empty, self._guidance_scale)
