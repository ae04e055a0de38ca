"""Chains of few steps: Euler's ancestral one against diffusers' scheduler, and what both keep."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor

from actors.drift import few_step_drift
from actors.sampling import sample_few_steps
from learner.diffusion.ddim import ddim_moments
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


KEPT_T = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def apart(kind: str, t: int, next_t: int) -> float:
    """How many deviations of a step lie between means whose noise differs by 1, by the schedule's
    betas alone."""
    kept, next_kept = float(KEPT_T[t]), float(KEPT_T[next_t])
    clean = -(((1 - kept) / kept) ** 0.5)
    if kind == "consistency":
        # c_out, which is nearly 1, and all of the next level's noise anew.
        clean *= 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
        return next_kept**0.5 * clean / (1 - next_kept) ** 0.5
    variance = (1 - next_kept) / (1 - kept) * (1 - kept / next_kept)
    mean = next_kept**0.5 * clean + (1 - next_kept - variance) ** 0.5
    return mean / variance**0.5


@pytest.mark.parametrize(
    ("chain", "kind", "grid"),
    [
        (CHAINS[0], "consistency", (999, 759, 499, 259)),
        (CHAINS[1], "ancestral", (999, 749, 499, 249)),
    ],
    ids=["consistency", "ancestral"],
)
def test_drift_is_the_kl_of_every_step_that_adds_noise(
    chain: FewStepChain, kind: str, grid: tuple[int, ...]
) -> None:
    first, *injected = noises(4)

    def base(x: Tensor, t_B: Tensor, *_: object) -> Tensor:
        return network(x, t_B) + 0.1

    kl_BS, distance_B = few_step_drift(network, base, chain, None, first, injected)
    # In nats, of all 36 numbers of a latent.
    expected_S = [36 * (0.1 * apart(kind, t, after)) ** 2 / 2 for t, after in pairwise(grid)]
    for kl_S in kl_BS.tolist():
        assert kl_S == pytest.approx(expected_S, rel=2e-3)
    assert distance_B.min() > 0
