"""Policy gradients of steps beside an independent reimplementation in NumPy, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.methods.ddpo import advantages, clipped_loss, log_ratio

REWARDS = torch.tensor([[0.1, 0.4, 0.9, 0.2], [2.0, 2.0, 2.0, 2.0], [-1.0, 3.0, 0.0, 0.5]])


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_an_advantage_is_in_deviations_of_the_own_group() -> None:
    ours = advantages(REWARDS, baseline="group", clip=5.0).numpy()
    rewards = REWARDS.double().numpy()
    for group in (0, 2):
        expected = (rewards[group] - rewards[group].mean()) / rewards[group].std()
        np.testing.assert_allclose(ours[group], expected, rtol=1e-6)


def test_in_a_group_without_a_difference_nobody_is_better() -> None:
    ours = advantages(REWARDS, baseline="group", clip=5.0)
    assert ours[1].tolist() == [0.0] * 4


def test_over_the_batch_prompts_compete() -> None:
    ours = advantages(REWARDS, baseline="batch", clip=5.0).numpy()
    rewards = REWARDS.double().numpy()
    np.testing.assert_allclose(ours, (rewards - rewards.mean()) / rewards.std(), rtol=1e-6)


def test_an_advantage_is_clipped_either_way() -> None:
    ours = advantages(REWARDS, baseline="group", clip=0.5)
    assert (float(ours.min()), float(ours.max())) == (-0.5, 0.5)


def log_prob(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Mean over the dimensions of a Gaussian's log-density, as DDPO's own code has it."""
    density = -((x - mean) ** 2) / (2 * std**2) - np.log(std) - 0.5 * math.log(2 * math.pi)
    return density.mean(axis=(1, 2, 3))


def test_the_log_ratio_is_that_of_two_gaussians_at_the_action() -> None:
    mean, old_mean, noise = normal(1, 6, 4, 3, 3), normal(2, 6, 4, 3, 3), normal(3, 6, 4, 3, 3)
    std = normal(4, 6, 1, 1, 1).abs() + 0.1
    action = (old_mean + std * noise).numpy()
    expected = log_prob(action, mean.numpy(), std.numpy())
    expected -= log_prob(action, old_mean.numpy(), std.numpy())
    np.testing.assert_allclose(log_ratio(mean, old_mean, std, noise).numpy(), expected, rtol=1e-9)


def test_before_the_first_update_the_ratio_is_one_exactly() -> None:
    mean, noise = normal(1, 6, 4, 3, 3).float(), normal(3, 6, 4, 3, 3).float()
    std = torch.full((6, 1, 1, 1), 1e-3)
    assert log_ratio(mean, mean.clone(), std, noise).exp().tolist() == [1.0] * 6


@pytest.mark.parametrize("clip", [1e-4, 0.2])
def test_loss_and_gradient_are_those_of_the_algorithm(clip: float) -> None:
    """DDPO's loss as its code writes it: the larger of two losses, by log-probabilities."""
    old_mean, noise, advantage_B = normal(2, 8, 4, 2, 2), normal(3, 8, 4, 2, 2), normal(5, 8)
    std = normal(4, 8, 1, 1, 1).abs() + 0.1
    # Some rows move within the clip and some beyond it.
    moved = normal(6, 8, 4, 2, 2) * torch.logspace(-5, 0, 8).reshape(-1, 1, 1, 1)
    ours = (old_mean + moved).requires_grad_()
    loss = clipped_loss(log_ratio(ours, old_mean, std, noise), advantage_B, clip).loss_B.mean()
    loss.backward()
    theirs = (old_mean + moved).requires_grad_()
    gaussian = torch.distributions.Normal(theirs, std.expand_as(theirs))
    old = torch.distributions.Normal(old_mean, std.expand_as(old_mean))
    action = old_mean + std * noise
    ratio_B = (gaussian.log_prob(action) - old.log_prob(action)).mean(dim=(1, 2, 3)).exp()
    unclipped_B = -advantage_B * ratio_B
    clipped_B = -advantage_B * torch.clamp(ratio_B, 1 - clip, 1 + clip)
    expected = torch.maximum(unclipped_B, clipped_B).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-15)


def test_the_share_that_the_clip_holds_has_no_gradient() -> None:
    log_ratio_B = torch.tensor([0.1, -0.1, 0.1, -0.1, 0.0], requires_grad=True)
    advantage_B = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    clipped = clipped_loss(log_ratio_B, advantage_B, 1e-3)
    clipped.loss_B.sum().backward()
    assert clipped.share == pytest.approx(2 / 5)
    assert log_ratio_B.grad is not None
    assert (log_ratio_B.grad != 0).tolist() == [False, True, True, False, True]


def test_the_gradient_of_an_expected_reward_is_the_policy_gradient() -> None:
    """REINFORCE over a known linear reward: mean A ∇log π is its gradient, up to chance."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0])
    noise = torch.randn(200_000, 4, 1, 1, generator=generator)
    std = torch.full((len(noise), 1, 1, 1), 0.3)
    mean = torch.zeros(4, 1, 1, requires_grad=True)
    reward_B = ((std * noise).flatten(1) * slope).sum(dim=1)
    log_ratio_B = log_ratio(mean.expand_as(noise), torch.zeros_like(noise), std, noise)
    # The mean over four dimensions is a quarter of the sum.
    (gradient,) = torch.autograd.grad(4 * (log_ratio_B.exp() * reward_B).mean(), mean)
    torch.testing.assert_close(gradient.flatten(), slope, rtol=0.02, atol=0.02)
