"""Chains of few steps: Euler's ancestral one against diffusers' scheduler, and what both keep."""

from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor

from actors.drift import few_step_drift
from actors.sampling import sample_few_steps
from learner.diffusion.ddim import ddim_moments, gaussian_kl
from learner.diffusion.few_steps import AncestralChain, ConsistencyChain, FewStepChain
from learner.diffusion.schedule import NoiseSchedule, trailing_timesteps

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = NoiseSchedule.from_config(BETAS)
SHAPE = (2, 4, 3, 3)
CHAINS = [ConsistencyChain(SCHEDULE, 4), AncestralChain(SCHEDULE, 4)]


def noises(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def network(x: Tensor, t_B: Tensor, *_: object) -> Tensor:
    """Some function of both, of about unit variance, that does not enlarge what is rounded off."""
    return (x + t_B.to(x.dtype)[:, None, None, None] / 300).sin() * 1.3


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
def test_the_trailing_grid_is_diffusers(num_steps: int) -> None:
    scheduler: Any = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    assert trailing_timesteps(num_steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_a_grid_of_no_steps_or_too_many_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match="it must be 1 to 1000"):
        trailing_timesteps(num_steps)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
def test_every_ancestral_step_is_diffusers(num_steps: int) -> None:
    first, *injected = noises(num_steps)
    scheduler: Any = EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    generator = torch.Generator().manual_seed(4)
    # Its latents are larger than ours by sqrt(1 + s²) of the level.
    x, expected = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        eps = network(scaled, t.expand(2).long())
        x, clean = scheduler.step(eps, t, x, generator=generator, return_dict=False)
        expected.append(clean)
    ours = sample_few_steps(network, AncestralChain(SCHEDULE, num_steps), None, first, injected)
    for mine, theirs in zip(ours, expected, strict=True):
        # Numbers near 0 are differences of large ones, and as exact as these.
        size = float(theirs.abs().max())
        torch.testing.assert_close(mine / size, theirs / size, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[-1], x, rtol=1e-5, atol=1e-5)


def test_an_ancestral_step_is_ddims_with_eta_1() -> None:
    x, eps = (each.double() for each in noises(2))
    chain = CHAINS[1]
    step_B = torch.tensor([0, 2])
    found = chain.moments(x, eps, step_B)
    for mine, theirs in zip(
        found, ddim_moments(x, eps, *chain.times(step_B), SCHEDULE), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("chain", CHAINS, ids=["consistency", "ancestral"])
def test_what_is_said_to_be_added_after_the_last_call_is_at_its_own_level(
    chain: FewStepChain,
) -> None:
    x, clean = noises(2)
    mean, std = chain.after(x, clean, torch.tensor([3, 3]))
    alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor([chain.timesteps[-1]] * 2), x)
    torch.testing.assert_close(mean, alpha * clean)
    torch.testing.assert_close(std, sigma)


@pytest.mark.parametrize("chain", CHAINS, ids=["consistency", "ancestral"])
def test_drift_is_the_kl_of_the_steps_own_moments(chain: FewStepChain) -> None:
    first, *injected = noises(4)

    def base(x: Tensor, t_B: Tensor, *_: object) -> Tensor:
        return network(x, t_B) + 0.1

    kl_BS, distance_B = few_step_drift(network, base, chain, None, first, injected)
    clean = sample_few_steps(network, chain, None, first, injected)
    x, step_B = chain.initial(first), torch.tensor([0, 0])
    for k in range(3):
        t_B, _ = chain.times(step_B + k)
        (mean, std), (other, _) = (
            chain.moments(x, ask(x, t_B), step_B + k) for ask in (network, base)
        )
        torch.testing.assert_close(kl_BS[:, k], gaussian_kl(mean, other, std), rtol=1e-3, atol=0)
        x = chain.noised(x, clean[k], k, injected[k])
    assert kl_BS.min() > 0
    assert distance_B.min() > 0
