"""Drawing latents from a policy, as functions of its network and of given noise.

Nothing here holds state or draws random numbers by itself: the same network, prompts and noise
give the same latents in a sampler, in the learner and in a test.
Shape suffixes: G members of a group, B rows of a batch, C H W latent channels, height, width,
E embedding. Latents are in the VAE's scaled units and float32; the network casts as it likes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.ddim import DdimSteps, guided
from learner.diffusion.few_steps import FewStepChain
from learner.diffusion.schedule import NoiseSchedule
from learner.diffusion.strata import Strata

# x_BCHW, t_B, prompts of B rows (whatever the network takes), guidance embedding [B, E] or None
# -> predicted noise [B, C, H, W].
Network = Callable[[Tensor, Tensor, Any, Tensor | None], Tensor]

_KEPT_STATES = 2**32 - 1
"""The stream that decides which states are kept."""


def kept_states(seed: int, strata: Strata) -> tuple[int, ...]:
    """The states that a group keeps, one of each part; depends on the arguments alone."""
    key = np.array([seed, _KEPT_STATES], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return strata.pick(generator.random(len(strata.edges) - 1).tolist())


def sample_few_steps(
    network: Network,
    chain: FewStepChain,
    prompts: Any,
    noise_BCHW: Tensor,
    injected: Sequence[Tensor],
    guidance_BE: Tensor | None = None,
) -> list[Tensor]:
    """Every clean prediction z_1 … z_N of an N-step sampler.

    Of a consistency model, z_k is also the sample of the sampler that stops after k calls of this
    grid. The last call injects no noise.

    Args:
        noise_BCHW: standard normal; what the first call starts from.
        injected: N − 1 of [B, C, H, W]; the k-th is added after call k.
        guidance_BE: for models that take the guidance scale as an input.
    """
    x_BCHW = chain.initial(noise_BCHW)
    clean: list[Tensor] = []
    for step, timestep in enumerate(chain.timesteps):
        if clean:
            x_BCHW = chain.noised(x_BCHW, clean[-1], step - 1, injected[step - 1])
        t_B = _rows(timestep, x_BCHW)
        eps_BCHW = network(x_BCHW, t_B, prompts, guidance_BE).to(x_BCHW.dtype)
        clean.append(chain.clean(x_BCHW, eps_BCHW, t_B))
    return clean


def sample_ddpm(
    network: Network,
    schedule: NoiseSchedule,
    prompts: Any,
    initial_BCHW: Tensor,
    injected: Iterable[Tensor],
    *,
    num_steps: int,
    guidance_scale: float,
    keep: Collection[int],
) -> dict[int, Tensor]:
    """The kept states of a DDIM chain with eta = 1: with 50 steps what papers call "DDPM".

    State i is the latent before step i, from 0 (pure noise) to num_steps (the clean one).

    Args:
        prompts: of 2·B rows, the unconditional ones first: guidance is one doubled batch. Of the
            B rows alone where the scale is 1, which is no guidance.
        injected: one [B, C, H, W] a step, the last step included. May be made lazily.
        keep: states to return; a chain of 50 large latents is mostly not worth its memory.
    """
    x_BCHW, noises = initial_BCHW, iter(injected)
    kept = {0: x_BCHW} if 0 in keep else {}
    for number, (t_B, step) in enumerate(chain_steps(schedule, num_steps, x_BCHW), start=1):
        eps_BCHW = guided_noise(network, x_BCHW, t_B, prompts, guidance_scale)
        mean_BCHW, std = step.moments(x_BCHW, eps_BCHW)
        # Made while a GPU still computes the prediction.
        x_BCHW = mean_BCHW + std * taken(noises)
        if number in keep:
            kept[number] = x_BCHW
    return kept


def chain_steps(
    schedule: NoiseSchedule, num_steps: int, x_BCHW: Tensor
) -> list[tuple[Tensor, DdimSteps]]:
    """Times [B] and numbers of every step of a chain of such latents, on their device."""
    chain = Chain(schedule, num_steps)
    times = chain.state_times(torch.arange(num_steps)).tolist()
    return list(zip([_rows(t, x_BCHW) for t in times], chain.steps(x_BCHW), strict=True))


def taken(noises: Iterator[Tensor]) -> Tensor:
    """The next of them.

    Raises:
        ValueError: there is none.
    """
    noise = next(noises, None)
    if noise is None:
        raise ValueError("the injected noise is shorter than the chain; give one for every step")
    return noise


def guided_noise(
    network: Network, x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_scale: float
) -> Tensor:
    """ε with classifier-free guidance, in one doubled call; `prompts` as in `sample_ddpm`."""
    if guidance_scale == 1:
        return network(x_BCHW, t_B, prompts, None).to(x_BCHW.dtype)
    doubled = network(torch.cat([x_BCHW, x_BCHW]), torch.cat([t_B, t_B]), prompts, None)
    uncond_BCHW, cond_BCHW = doubled.to(x_BCHW.dtype).chunk(2)
    return guided(cond_BCHW, uncond_BCHW, guidance_scale)


def _rows(timestep: int, x_BCHW: Tensor) -> Tensor:
    return torch.full((x_BCHW.shape[0],), timestep, dtype=torch.long, device=x_BCHW.device)
