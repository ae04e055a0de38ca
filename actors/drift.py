"""How far a policy has moved from the untouched model, along chains that it draws itself.

A sampler's step that adds noise is a Gaussian: its mean is the network's, its deviation the
schedule's, so KL(policy ‖ base) of a step at a state is exact. Averaged over states of the
policy's own chains it estimates, step by step, the terms whose sum is the KL between the
distributions of whole chains, which bounds that of the pictures from above.
Shape suffixes: B rows, S steps that have a density, C H W latent channels, height, width.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from actors.sampling import Network, chain_steps, guided_noise, sample_few_steps, taken
from learner.diffusion.ddim import gaussian_kl
from learner.diffusion.few_steps import FewStepChain
from learner.diffusion.schedule import NoiseSchedule


def many_step_kl(
    network: Network,
    base: Network,
    schedule: NoiseSchedule,
    prompts: Any,
    initial_BCHW: Tensor,
    injected: Iterable[Tensor],
    *,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    """True KL in nats of each step of a DDIM chain that `network` draws, [B, S]; S = num_steps.

    Args:
        prompts, injected, guidance_scale: as in `actors.sampling.sample_ddpm`.
    """
    x_BCHW, steps, noises = initial_BCHW, [], iter(injected)
    for t_B, step in chain_steps(schedule, num_steps, x_BCHW):
        (mean, std), (base_mean, _) = (
            step.moments(x_BCHW, guided_noise(each, x_BCHW, t_B, prompts, guidance_scale))
            for each in (network, base)
        )
        steps.append(gaussian_kl(mean, base_mean, std))
        x_BCHW = mean + std * taken(noises)
    return torch.stack(steps, dim=1)


def few_step_drift(
    network: Network,
    base: Network,
    chain: FewStepChain,
    prompts: Any,
    noise_BCHW: Tensor,
    injected: Sequence[Tensor],
    guidance_BE: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """KL in nats of a few-step sampler's steps, [B, S], and its clean distance, [B].

    All of its N calls but the last are followed by noise: S = N − 1. The last one's output is the
    sample itself and has no density, so its KL would be 0 or infinite. What it changed is told by
    the clean distance: RMS over the latent of the difference between the last clean predictions
    of policy and base, from the same state.

    Args:
        prompts, noise_BCHW, injected, guidance_BE: as in `actors.sampling.sample_few_steps`.
    """
    clean = sample_few_steps(network, chain, prompts, noise_BCHW, injected, guidance_BE)
    x_BCHW, steps, difference = chain.initial(noise_BCHW), [], torch.zeros_like(noise_BCHW)
    for k, timestep in enumerate(chain.timesteps):
        if k > 0:
            x_BCHW = chain.noised(x_BCHW, clean[k - 1], k - 1, injected[k - 1])
        t_B = torch.full((len(x_BCHW),), timestep, device=x_BCHW.device)
        eps_BCHW = base(x_BCHW, t_B, prompts, guidance_BE).to(x_BCHW.dtype)
        base_clean = chain.clean(x_BCHW, eps_BCHW, t_B)
        difference = clean[k] - base_clean
        if k + 1 < chain.num_steps:
            step_B = torch.full((len(x_BCHW),), k)
            (mean, std), (base_mean, _) = (
                chain.after(x_BCHW, each, step_B) for each in (clean[k], base_clean)
            )
            steps.append(gaussian_kl(mean, base_mean, std))
    kl_BS = torch.stack(steps, dim=1) if steps else noise_BCHW.new_zeros(len(noise_BCHW), 0)
    return kl_BS, difference.flatten(1).square().mean(dim=1).sqrt()
