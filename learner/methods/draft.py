"""Reward gradients through a sampler's last steps, as pure functions.

    last       x_{T−K} ─ K steps with a gradient ─► x_T          DRaFT-K, Clark et al. 2024
    renoised   x_T ─ noise ─► x_{T−1} ─ the last step ─► x_T     DRaFT-LV (arXiv:2309.17400)
    stopped    x_m ─ one call ─► its clean latent                ReFL, Xu et al. 2023
                                                                 (arXiv:2304.05977)

Shape suffixes: B rows, K steps; x is [B, C, H, W].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.ddim import Reduce, ddim_moments, gaussian_kl
from learner.diffusion.schedule import add_noise, predict_x0
from learner.methods.sqdf import KlStd, kl_std

AskNoise = Callable[[Tensor, Tensor], Tensor]
"""x, t_B -> guided noise, with a gradient to whatever of it has one."""


@dataclass(frozen=True)
class KlForm:
    """How the KL of a step is written: see `gaussian_kl` and `kl_std`."""

    reduce: Reduce = "sum"
    std: KlStd = "posterior"


@dataclass(frozen=True)
class Walk:
    """Where a path with a gradient leads.

    Args:
        clean: what is rewarded.
        kl_B: to the reference, summed over the path's steps in the form that was asked for; 0
            without a reference.
        nats_B: the true KL, without a gradient.
    """

    clean: Tensor
    kl_B: Tensor
    nats_B: Tensor


def through_last_steps(
    policy: AskNoise,
    reference: AskNoise | None,
    x: Tensor,
    noise_KBCHW: Tensor,
    chain: Chain,
    form: KlForm,
) -> Walk:
    """From the state K steps before the end; the gradient goes through all of them, by the state
    too."""
    rows, count = len(x), len(noise_KBCHW)
    kl_B = nats_B = x.new_zeros(rows)
    for k in range(count):
        step_B = torch.full((rows,), chain.num_steps - count + k)
        x, step_kl_B, step_nats_B = _step(policy, reference, x, noise_KBCHW[k], step_B, chain, form)
        kl_B, nats_B = kl_B + step_kl_B, nats_B + step_nats_B
    return Walk(x, kl_B, nats_B)


def through_renoised(
    policy: AskNoise,
    reference: AskNoise | None,
    clean: Tensor,
    noise_BCHW: Tensor,
    step_noise_BCHW: Tensor,
    chain: Chain,
    form: KlForm,
) -> Walk:
    """A clean latent, noised to the last step's time, and the last step from there.

    The network is called on the noised latent: a gradient by what it had said of another one would
    not be that of DRaFT-LV.
    """
    last_B = torch.full((len(clean),), chain.num_steps - 1)
    t_B, _ = chain.times(last_B)
    x = add_noise(clean.detach(), noise_BCHW, t_B, chain.schedule)
    return Walk(*_step(policy, reference, x, step_noise_BCHW, last_B, chain, form))


def through_one_call(
    policy: AskNoise,
    reference: AskNoise | None,
    x: Tensor,
    step_B: Tensor,
    chain: Chain,
    form: KlForm,
) -> Walk:
    """The clean latent that the policy tells of a state, by the call that its next step makes."""
    t_B, prev_t_B = chain.times(step_B)
    eps = policy(x, t_B)
    mean, std = ddim_moments(x, eps, t_B, prev_t_B, chain.schedule)
    kl_B, nats_B = _kl(reference, x, mean, std, step_B, chain, form)
    return Walk(predict_x0(x, eps, t_B, chain.schedule), kl_B, nats_B)


def step_kl(
    policy: AskNoise,
    reference: AskNoise,
    x: Tensor,
    step_B: Tensor,
    chain: Chain,
    form: KlForm,
) -> tuple[Tensor, Tensor]:
    """KL of one step of a chain to the reference's, [B], from a state that a sampler met: in the
    form that was asked for, with a gradient by what the policy says of it; and the true one."""
    t_B, prev_t_B = chain.times(step_B)
    mean, std = ddim_moments(x, policy(x, t_B), t_B, prev_t_B, chain.schedule)
    return _kl(reference, x, mean, std, step_B, chain, form)


def reward_loss(reward_B: Tensor, kl_B: Tensor, *, alpha: float, ceiling: float | None) -> Tensor:
    """−mean(min(r, ceiling) − α KL); at and above the ceiling a reward has no gradient.

    ReFL (Xu et al. 2023, alg. 1) multiplies its relu(2 − r) by 1e-3; here alpha and a clip of the
    gradient's norm are on the scale of the reward itself.
    """
    if ceiling is not None:
        reward_B = ceiling - (ceiling - reward_B).relu()
    return -(reward_B - alpha * kl_B).mean()


def _step(
    policy: AskNoise,
    reference: AskNoise | None,
    x: Tensor,
    noise: Tensor,
    step_B: Tensor,
    chain: Chain,
    form: KlForm,
) -> tuple[Tensor, Tensor, Tensor]:
    t_B, prev_t_B = chain.times(step_B)
    mean, std = ddim_moments(x, policy(x, t_B), t_B, prev_t_B, chain.schedule)
    kl_B, nats_B = _kl(reference, x, mean, std, step_B, chain, form)
    return mean + std * noise, kl_B, nats_B


def _kl(
    reference: AskNoise | None,
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    step_B: Tensor,
    chain: Chain,
    form: KlForm,
) -> tuple[Tensor, Tensor]:
    if reference is None:
        return mean.new_zeros(len(mean)), mean.new_zeros(len(mean))
    t_B, prev_t_B = chain.times(step_B)
    # A state that earlier steps led to has a gradient through the reference as well.
    with torch.set_grad_enabled(x.requires_grad):
        ref_mean, _ = ddim_moments(x, reference(x, t_B), t_B, prev_t_B, chain.schedule)
    kl_B = gaussian_kl(mean, ref_mean, kl_std(step_B, chain, x, form.std), reduce=form.reduce)
    return kl_B, gaussian_kl(mean.detach(), ref_mean.detach(), std)
