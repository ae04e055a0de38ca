"""SQDF's objective: one reparameterised step up a training-free soft Q, in pure tensor maths.

    x_t ─► ε, ε_ref ─► μ, μ_ref, σ ─► x_prev = μ + σ z ─► x̂0 ─► R
    loss = −mean over B of (w R − α KL),  w = γ^k, k steps come after this one

Source: "Diffusion Fine-Tuning via Reparameterized Policy Gradient of the Soft Q-Function" (SQDF,
ICLR 2026). x_t comes from replay and takes no gradient; z is fresh, so no importance weight is
needed. Step i of T goes from state i to state i + 1 (`learner.diffusion.chain`).
Shape suffixes: B rows; tensors without one are [B, C, H, W].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.consistency import NoiseModel
from learner.diffusion.ddim import ddim_moments
from learner.diffusion.schedule import ddim_timesteps, predict_x0

KlStd = Literal["posterior", "forward"]
Clean = Callable[[Tensor, Tensor], Tensor]
"""x_prev, step_B -> x̂0: what the reward is asked about."""


@dataclass(frozen=True)
class Step:
    """A policy's step and its reference's, from the same state.

    Args:
        std: of both, [B, 1, 1, 1].
        x_prev: the state after it, with the policy's gradient.
    """

    mean: Tensor
    ref_mean: Tensor
    std: Tensor
    x_prev: Tensor


def take_step(
    x: Tensor, eps: Tensor, ref_eps: Tensor, noise: Tensor, step_B: Tensor, chain: Chain
) -> Step:
    """x_prev = μ + σ z of the policy's ε, beside the μ of the reference's; ε are guided already."""
    t_B, prev_t_B = chain.times(step_B)
    mean, std = ddim_moments(x, eps, t_B, prev_t_B, chain.schedule)
    ref_mean, _ = ddim_moments(x, ref_eps, t_B, prev_t_B, chain.schedule)
    return Step(mean, ref_mean, std, mean + std * noise)


def kl_std(step_B: Tensor, chain: Chain, like: Tensor, kind: KlStd = "posterior") -> Tensor:
    """The σ that a KL divides by, [B, 1, 1, 1].

    'posterior' is the step's own. On the grid of 50 its second to last step is so narrow that it
    carries half of all KL weight; 'forward', sqrt(1 − ᾱ_t/ᾱ_prev), is of the same order in all.
    """
    t_B, prev_t_B = chain.times(step_B)
    alpha, sigma = chain.schedule.alpha_sigma(t_B, like)
    prev_alpha, prev_sigma = chain.schedule.alpha_sigma(prev_t_B, like)
    forward = (1 - (alpha / prev_alpha) ** 2).sqrt()
    return forward if kind == "forward" else forward * prev_sigma / sigma


def clean_by_consistency(model: NoiseModel, chain: Chain) -> Clean:
    """x̂0 = f(x_prev, nearest time) in one call without guidance; the last step's is x_prev."""

    def clean(x_prev: Tensor, step_B: Tensor) -> Tensor:
        x0 = chain.told_clean(model, x_prev, step_B + 1)
        return _unless_last(x0, x_prev, step_B, chain)

    return clean


def clean_by_tweedie(reference: NoiseModel, chain: Chain) -> Clean:
    """x̂0 = E[x_0 | x_prev] by the guided reference (ablation); the last step's is x_prev."""

    def clean(x_prev: Tensor, step_B: Tensor) -> Tensor:
        _, t_B = chain.times(step_B)
        x0 = predict_x0(x_prev, reference(x_prev, t_B), t_B, chain.schedule)
        return _unless_last(x0, x_prev, step_B, chain)

    return clean


def clean_by_ddim(reference: NoiseModel, chain: Chain, num_calls: int) -> Clean:
    """x̂0 by `num_calls` deterministic steps of the guided reference, evenly over those left.

    An ablation, and unstable in the paper: the gradient passes every call. Where fewer steps are
    left than calls, the surplus calls change nothing.
    """

    def clean(x_prev: Tensor, step_B: Tensor) -> Tensor:
        """The clean latent that so many calls from here lead to."""
        schedule, x = chain.schedule, x_prev
        grid = torch.tensor([*ddim_timesteps(chain.num_steps, schedule.num_train_timesteps), 0])
        share_S = torch.linspace(0, 1, num_calls + 1, dtype=torch.float64)
        first_B = step_B.cpu() + 1
        index_BS = (
            (first_B[:, None] + share_S * (chain.num_steps - first_B)[:, None]).round().long()
        )
        for call in range(num_calls):
            t_B, next_t_B = grid[index_BS[:, call]], grid[index_BS[:, call + 1]]
            moved, _ = ddim_moments(x, reference(x, t_B), t_B, next_t_B, schedule, eta=0.0)
            moves_B = (index_BS[:, call] < index_BS[:, call + 1]).to(x.device)
            x = torch.where(moves_B.reshape(-1, 1, 1, 1), moved, x)
        return x

    return clean


def soft_q_loss(
    reward_B: Tensor, kl_B: Tensor, weight_B: Tensor, *, alpha: float, positive_only: bool = False
) -> Tensor:
    """−mean(w R − α KL). The weight does not discount the KL.

    Args:
        weight_B: γ^k, or 1 where times were drawn in proportion to γ^k: both at once would
            discount twice. Drawn so, the KL is discounted as well, unlike in the paper, and both
            terms are T / Σ γ^k times as large.
        positive_only: rows of R ≤ 0 count 0, their KL too (the reference code; it drops half of
            the data of a reward around zero).
    """
    gain_B = weight_B * reward_B - alpha * kl_B
    if positive_only:
        gain_B = gain_B * (reward_B.detach() > 0)
    return -gain_B.mean()


def discount_weights(step_B: Tensor, chain: Chain, discount: float) -> Tensor:
    """γ^k, float64 [B]."""
    return discount ** chain.steps_after(step_B).double()


def adapted_alpha(alpha: float, kl: float, target: float, *, rate: float = 0.1) -> float:
    """α after a step whose mean KL was `kl`: up where it was above the target, down below.

    The proportional controller of Ziegler et al. 2019 (arXiv:1909.08593), its error cut at ±0.2.
    A KL that is infinite or no number tells nothing.
    """
    if not math.isfinite(kl):
        return alpha
    error = min(max(kl / target - 1, -0.2), 0.2)
    return alpha * (1 + rate * error)


def _unless_last(x0: Tensor, x_prev: Tensor, step_B: Tensor, chain: Chain) -> Tensor:
    last = chain.is_last(step_B).to(x_prev.device).reshape(-1, 1, 1, 1)
    return torch.where(last, x_prev, x0)
