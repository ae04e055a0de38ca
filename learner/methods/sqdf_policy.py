"""SQDF's policy step under an engine: replayed states in, one update out.

Every random draw is a function of (seed, step), of the whole batch on every rank, so that cutting
the batch over ranks changes nothing but the order of a sum.
Shape suffixes: B rows of this rank, C H W latent, L tokens, E embedding.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from learner.diffusion.ddim import gaussian_kl, guided
from learner.engine import Engine, mean_over_ranks
from learner.methods.sqdf import (
    Chain,
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
from learner.seat import Seat
from learner.settings import Sqdf
from learner.states import StateBatch

Encode = Callable[[list[str]], Tensor]
RewardOf = Callable[[Tensor, Tensor], Tensor]
"""Clean latents [B, C, H, W], text states [B, L, E] -> rewards [B], with a gradient to latents."""


@dataclass(frozen=True)
class SqdfState:
    """What a policy step carries to the next, beside weights and optimizer."""

    step: int = 0
    alpha: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class SqdfPolicy:
    """The policy under its engine, and the steps that improve it.

    Args:
        engine: of a `Denoiser` of many steps.
        reference: the untouched UNet, frozen.
        consistency: a frozen consistency model; None where the reference tells clean latents.
        guidance_scale: of policy and reference; the consistency model has none.
    """

    def __init__(
        self,
        settings: Sqdf,
        engine: Engine,
        chain: Chain,
        encode: Encode,
        reference: nn.Module,
        consistency: nn.Module | None,
        reward: RewardOf,
        *,
        guidance_scale: float,
        seat: Seat,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._chain = chain
        self._encode = encode
        self._reference = reference
        self._consistency = consistency
        self._reward = reward
        self._guidance_scale = guidance_scale
        self._seat = seat
        self.state = SqdfState(alpha=settings.alpha)

    def step(self, batch: StateBatch) -> dict[str, float]:
        """One update from states of this rank; returns its metrics."""
        settings, chain, device = self._settings, self._chain, self._engine.device
        x, step_B = batch.latents_BCHW.to(device), batch.step_B.to(device)
        text = self._encode(list(batch.prompts)).to(device)
        empty = self._encode([""]).to(device).expand(len(text), -1, -1)
        t_B = chain.times(step_B)[0].to(device)
        eps = self._guided(self._policy_noise, x, t_B, text, empty)
        with torch.no_grad():
            ref_eps = self._guided(self._reference_noise, x, t_B, text, empty)
        taken = take_step(x, eps, ref_eps, self._noise(x), step_B, chain)
        reward_B = self._reward(self._clean(text, empty)(taken.x_prev, step_B), text)
        std = kl_std(step_B, chain, x, settings.kl_std)
        kl_B = gaussian_kl(taken.mean, taken.ref_mean, std, reduce=settings.kl_reduce)
        weight_B = self._weights(step_B).to(reward_B)
        loss = soft_q_loss(
            reward_B, kl_B, weight_B, alpha=self.state.alpha, positive_only=settings.positive_only
        )
        norm = self._engine.update(loss)
        nats = gaussian_kl(taken.mean.detach(), taken.ref_mean, taken.std)
        metrics = mean_over_ranks(
            {
                "soft_q_loss": float(loss.detach()),
                "surrogate_reward": float(reward_B.detach().mean()),
                "weighted_reward": float((weight_B * reward_B.detach()).mean()),
                "kl_nats": float(nats.mean()),
                "kl_penalty": self.state.alpha * float(kl_B.detach().mean()),
                "alpha": self.state.alpha,
                "gradient_norm": norm,
            }
        )
        alpha = self.state.alpha
        if settings.target_kl is not None:
            alpha = adapted_alpha(alpha, metrics["kl_nats"], settings.target_kl)
        self.state = SqdfState(self.state.step + 1, alpha)
        return metrics

    def _weights(self, step_B: Tensor) -> Tensor:
        """γ^k, unless times were drawn in proportion to it already."""
        if self._settings.states.times == "discounted":
            return torch.ones(len(step_B), dtype=torch.float64)
        return discount_weights(step_B, self._chain, self._settings.discount)

    def _noise(self, x: Tensor) -> Tensor:
        """This rank's share of the step's noise."""
        generator = torch.Generator().manual_seed(self._seat.seed * 1_000_003 + self.state.step)
        shape = (self._settings.policy_batch, *x.shape[1:])
        return torch.randn(shape, generator=generator)[self._seat.share].to(x)

    def _clean(self, text: Tensor, empty: Tensor) -> Clean:
        by = self._settings.clean.by
        if by == "consistency":
            model = self._consistency
            assert model is not None
            return clean_by_consistency(
                lambda x, t_B: _unet_noise(model, x, t_B, text), self._chain
            )

        def reference(x: Tensor, t_B: Tensor) -> Tensor:
            return self._guided(self._reference_noise, x, t_B.to(x.device), text, empty)

        if by == "tweedie":
            return clean_by_tweedie(reference, self._chain)
        return clean_by_ddim(reference, self._chain, self._settings.clean.calls)

    def _guided(
        self,
        noise: Callable[[Tensor, Tensor, Tensor], Tensor],
        x: Tensor,
        t_B: Tensor,
        text: Tensor,
        empty: Tensor,
    ) -> Tensor:
        """ε with classifier-free guidance, in one doubled call; scale 1 needs no second half."""
        if self._guidance_scale == 1:
            return noise(x, t_B, text)
        both = noise(torch.cat([x, x]), torch.cat([t_B, t_B]), torch.cat([empty, text]))
        uncond, cond = both.chunk(2)
        return guided(cond, uncond, self._guidance_scale)

    def _policy_noise(self, x: Tensor, t_B: Tensor, text: Tensor) -> Tensor:
        return self._engine(x, t_B, text, None)

    def _reference_noise(self, x: Tensor, t_B: Tensor, text: Tensor) -> Tensor:
        return _unet_noise(self._reference, x, t_B, text)


def _unet_noise(unet: nn.Module, x: Tensor, t_B: Tensor, text: Tensor) -> Tensor:
    return unet(x, t_B.to(x.device), encoder_hidden_states=text).sample
