"""Gradients through a sampler's last steps beside a chain that is written out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.schedule import NoiseSchedule
from learner.methods.draft import (
    KlForm,
    reward_loss,
    step_kl,
    through_last_steps,
    through_one_call,
    through_renoised,
)

CHAIN = Chain(
    NoiseSchedule.from_config(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    )
)
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
GRID = [*range(981, 0, -20), 0]
ROWS = 3


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Net:
    """A noise model with two numbers to learn; counts the times that it is asked at."""

    def __init__(self, slope: float = 0.3, shift: float = 0.1) -> None:
        self.weights = torch.tensor([slope, shift], dtype=torch.float64, requires_grad=True)
        self.asked: list[tuple[Tensor, list[int]]] = []

    def __call__(self, x: Tensor, t_B: Tensor) -> Tensor:
        self.asked.append((x.detach(), t_B.tolist()))
        return self.weights[0] * x.tanh() + self.weights[1] * (t_B / 1000).reshape(-1, 1, 1, 1)

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.weights, retain_graph=True)[0]


def step_by_hand(net: Net, x: Tensor, noise: Tensor, step: int) -> tuple[Tensor, Tensor, float]:
    """DDIM with eta 1 from the table of ᾱ: next state, its mean and its deviation."""
    abar, prev = ABAR[GRID[step]], ABAR[GRID[step + 1]]
    eps = net(x, torch.full((len(x),), GRID[step]))
    variance = (1 - prev) / (1 - abar) * (1 - abar / prev)
    clean = (x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)
    mean = math.sqrt(prev) * clean + math.sqrt(1 - prev - variance) * eps
    return mean + math.sqrt(variance) * noise, mean, math.sqrt(variance)


def reward(x: Tensor) -> Tensor:
    return (x.flatten(1).mean(dim=1) - 0.2).square()


@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_gradient_of_the_last_steps_is_that_of_the_unrolled_chain(count: int) -> None:
    x, noise = normal(1, ROWS, 4, 2, 2), normal(2, count, ROWS, 4, 2, 2)
    ours, theirs = Net(), Net()
    walk = through_last_steps(ours, None, x, noise, CHAIN, KlForm())
    state = x
    for k in range(count):
        state, _, _ = step_by_hand(theirs, state, noise[k], 50 - count + k)
    torch.testing.assert_close(walk.clean, state, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        ours.gradient(reward(walk.clean).mean()),
        theirs.gradient(reward(state).mean()),
        rtol=1e-9,
        atol=1e-15,
    )
    assert [times[0] for _, times in ours.asked] == GRID[50 - count : 50]


@pytest.mark.parametrize("reduce", ["sum", "mean", "sqdf"])
def test_the_kl_of_a_path_is_the_sum_over_its_steps_and_so_is_its_gradient(reduce: str) -> None:
    x, noise = normal(1, ROWS, 4, 2, 2), normal(2, 3, ROWS, 4, 2, 2)
    ours, theirs, reference = Net(), Net(), Net(0.2, 0.05)
    walk = through_last_steps(
        ours,
        reference,
        x,
        noise,
        CHAIN,
        KlForm(reduce),  # pyright: ignore[reportArgumentType]
    )
    state, total = x, torch.zeros(ROWS, dtype=torch.float64)
    for k in range(3):
        _, ref_mean, _ = step_by_hand(reference, state, noise[k], 47 + k)
        state, mean, std = step_by_hand(theirs, state, noise[k], 47 + k)
        squares = ((mean - ref_mean) / std).square().flatten(1)
        form = {"sum": squares.sum(1) / 2, "mean": squares.mean(1) / 2, "sqdf": squares.mean(1)}
        total = total + form[reduce]
    torch.testing.assert_close(walk.kl_B, total, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(
        ours.gradient(walk.kl_B.sum()), theirs.gradient(total.sum()), rtol=1e-8, atol=1e-12
    )
    if reduce == "sum":
        torch.testing.assert_close(walk.nats_B, total.detach(), rtol=1e-8, atol=1e-12)


def test_the_kl_of_a_step_has_a_gradient_by_the_policy_alone() -> None:
    x, step_B = normal(1, ROWS, 4, 2, 2).requires_grad_(), torch.tensor([0, 30, 48])
    ours, theirs, reference = Net(), Net(), Net(0.2, 0.05)
    kl_B, nats_B = step_kl(ours, reference, x.detach(), step_B, CHAIN, KlForm())
    rows = [
        tuple(step_by_hand(net, x[i : i + 1], x[:1], int(step))[1] for net in (theirs, reference))
        for i, step in enumerate(step_B)
    ]
    stds = [step_by_hand(theirs, x[:1], x[:1], int(step))[2] for step in step_B]
    expected = torch.stack(
        [
            ((mean - ref.detach()) / std).square().sum() / 2
            for (mean, ref), std in zip(rows, stds, strict=True)
        ]
    )
    torch.testing.assert_close(kl_B, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(nats_B, expected.detach(), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(
        ours.gradient(kl_B.sum()), theirs.gradient(expected.sum()), rtol=1e-6, atol=1e-9
    )
    assert torch.autograd.grad(kl_B.sum(), reference.weights, allow_unused=True) == (None,)


def test_equal_networks_have_no_kl() -> None:
    walk = through_last_steps(
        Net(), Net(), normal(1, ROWS, 4, 2, 2), normal(2, 4, ROWS, 4, 2, 2), CHAIN, KlForm()
    )
    assert walk.kl_B.tolist() == [0.0] * ROWS


def test_a_latent_that_is_noised_again_is_what_the_network_is_asked_about() -> None:
    clean, noise, step_noise = (normal(seed, ROWS, 4, 2, 2) for seed in (1, 2, 3))
    net, theirs = Net(), Net()
    walk = through_renoised(net, None, clean, noise, step_noise, CHAIN, KlForm())
    noised = math.sqrt(ABAR[1]) * clean + math.sqrt(1 - ABAR[1]) * noise
    ((asked, times),) = net.asked
    torch.testing.assert_close(asked, noised, rtol=1e-12, atol=0)
    assert times == [1] * ROWS
    expected, _, _ = step_by_hand(theirs, noised, step_noise, 49)
    torch.testing.assert_close(
        net.gradient(reward(walk.clean).sum()),
        theirs.gradient(reward(expected).sum()),
        rtol=1e-9,
        atol=1e-15,
    )


def test_no_gradient_leaves_by_the_latent_that_is_noised_again() -> None:
    clean = normal(1, ROWS, 4, 2, 2).requires_grad_()
    noise = normal(2, ROWS, 4, 2, 2)
    walk = through_renoised(Net(), None, clean, noise, noise, CHAIN, KlForm())
    assert torch.autograd.grad(walk.clean.sum(), clean, allow_unused=True) == (None,)


def test_where_a_chain_stops_one_call_at_its_own_time_tells_the_clean_latent() -> None:
    x, step_B = normal(1, ROWS, 4, 2, 2), torch.tensor([38, 44, 49])
    net = Net()
    walk = through_one_call(net, None, x, step_B, CHAIN, KlForm())
    ((_, times),) = net.asked
    assert times == [GRID[38], GRID[44], GRID[49]]
    abar = torch.from_numpy(ABAR[times]).reshape(-1, 1, 1, 1)
    eps = Net()(x, torch.tensor(times))
    expected = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
    torch.testing.assert_close(walk.clean, expected, rtol=1e-9, atol=1e-12)


def test_above_the_ceiling_a_reward_is_worth_no_step() -> None:
    reward_B = torch.tensor([0.5, 1.9, 2.0, 3.0], requires_grad=True)
    loss = reward_loss(reward_B, torch.tensor([0.0, 1.0, 0.0, 0.0]), alpha=0.5, ceiling=2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-(0.5 + 1.9 - 0.5 + 2.0 + 2.0) / 4)
    assert reward_B.grad is not None
    assert reward_B.grad.tolist() == [-0.25, -0.25, 0.0, 0.0]
