"""SQDF's objective beside a float64 reimplementation in NumPy and published tables."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.consistency import NoiseModel
from learner.diffusion.ddim import Reduce, gaussian_kl
from learner.diffusion.schedule import NoiseSchedule
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

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
CHAIN = Chain(SCHEDULE)
STEPS = torch.tensor([0, 24, 47, 48, 49])
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def latents(seed: int, rows: int = len(STEPS)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, 2, 2, generator=generator, dtype=torch.float64)


def linear_model(x: Tensor, t_B: Tensor) -> Tensor:
    """A noise model that depends on both of its inputs."""
    return 0.3 * x + (t_B / 1000).reshape(-1, 1, 1, 1)


def test_times_of_the_fifty_steps() -> None:
    t_B, prev_t_B = CHAIN.times(STEPS)
    assert t_B.tolist() == [981, 501, 41, 21, 1]
    assert prev_t_B.tolist() == [961, 481, 21, 1, 0]
    assert CHAIN.steps_after(STEPS).tolist() == [49, 25, 2, 1, 0]


def test_the_consistency_model_is_told_the_nearest_time_of_its_grid() -> None:
    states = torch.tensor([0, 1, 2, 11, 46, 48, 49, 50])
    assert CHAIN.consistency_times(states).tolist() == [979, 959, 939, 759, 59, 19, 19, 19]


@pytest.mark.parametrize(
    ("step", "std", "weight"),
    [(0, 0.45446, 0.2627), (20, 0.32290, 0.1502), (48, 0.03948, 10.7242), (49, 0.02065, 1.0064)],
)
def test_kl_per_unit_of_noise_is_the_tables(step: int, std: float, weight: float) -> None:
    """w = c²/σ², with which mean(Δε²) enters mean(Δμ²)/σ²."""
    step_B = torch.tensor([step])
    x, eps = latents(0, 1), latents(1, 1)
    taken = take_step(x, eps, eps + 1, torch.zeros_like(x), step_B, CHAIN)
    assert taken.std.item() == pytest.approx(std, abs=1e-5)
    kl = gaussian_kl(taken.mean, taken.ref_mean, kl_std(step_B, CHAIN, x), reduce="sqdf")
    assert kl.item() == pytest.approx(weight, abs=2e-4)


def test_the_posterior_std_of_a_kl_is_that_of_the_step() -> None:
    x = latents(0)
    taken = take_step(x, x, x, torch.zeros_like(x), STEPS, CHAIN)
    torch.testing.assert_close(kl_std(STEPS, CHAIN, x), taken.std)


def test_with_the_forward_std_no_step_has_more_than_a_few_times_the_weight_of_another() -> None:
    steps = torch.arange(50)
    x, eps = latents(0, 50), latents(1, 50)
    taken = take_step(x, eps, eps + 1, torch.zeros_like(x), steps, CHAIN)
    std = kl_std(steps, CHAIN, x, "forward")
    weights = gaussian_kl(taken.mean, taken.ref_mean, std, reduce="sqdf")
    assert float(weights[48]) == pytest.approx(0.93, abs=0.01)
    assert float(weights.max() / weights.sum()) < 0.1


@pytest.mark.parametrize("reduce", ["sum", "mean", "sqdf"])
@pytest.mark.parametrize("discount", [0.85, 0.9, 1.0])
@pytest.mark.parametrize("positive_only", [False, True])
def test_one_step_equals_a_reimplementation(
    reduce: Reduce, discount: float, positive_only: bool
) -> None:
    x, noise, scale = latents(1), latents(2), 0.7
    eps, ref_eps = latents(3).requires_grad_(), latents(4)
    taken = take_step(x, eps, ref_eps, noise, STEPS, CHAIN)
    clean = clean_by_consistency(linear_model, CHAIN)(taken.x_prev, STEPS)
    reward_B = scale * clean.flatten(1).sum(dim=1)
    kl_B = gaussian_kl(taken.mean, taken.ref_mean, kl_std(STEPS, CHAIN, x), reduce=reduce)
    weight_B = discount_weights(STEPS, CHAIN, discount)
    loss = soft_q_loss(reward_B, kl_B, weight_B, alpha=2.0, positive_only=positive_only)
    loss.backward()
    assert eps.grad is not None

    def by_hand(e: np.ndarray) -> float:
        return _loss_by_hand(
            x.numpy(), e, ref_eps.numpy(), noise.numpy(), reduce, discount, positive_only, scale
        )

    at = eps.detach().numpy()
    assert loss.item() == pytest.approx(by_hand(at), rel=1e-6)
    for row in range(len(STEPS)):
        nudge = np.zeros_like(at)
        nudge[row, 1, 0, 1] = 1e-5
        slope = (by_hand(at + nudge) - by_hand(at - nudge)) / 2e-5
        assert eps.grad[row, 1, 0, 1].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def _loss_by_hand(
    x: np.ndarray,
    eps: np.ndarray,
    ref_eps: np.ndarray,
    noise: np.ndarray,
    reduce: str,
    discount: float,
    positive_only: bool,
    scale: float,
) -> float:
    total = 0.0
    for row, step in enumerate(STEPS.tolist()):
        t = 981 - 20 * step
        prev = max(t - 20, 0)
        a, b = ABAR[t], ABAR[prev]
        std = np.sqrt((1 - b) / (1 - a) * (1 - a / b))

        def mean(e: np.ndarray, row: int = row, a: float = a, b: float = b, std: float = std):
            x0 = (x[row] - np.sqrt(1 - a) * e[row]) / np.sqrt(a)
            return np.sqrt(b) * x0 + np.sqrt(1 - b - std**2) * e[row]

        x_prev = mean(eps) + std * noise[row]
        if step < 49:
            tau = min(range(19, 1000, 20), key=lambda s, prev=prev: abs(s - prev))
            e = 0.3 * x_prev + tau / 1000
            x0 = (x_prev - np.sqrt(1 - ABAR[tau]) * e) / np.sqrt(ABAR[tau])
            scaled = 10.0 * tau
            skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
            clean = skip * x_prev + out * x0
        else:
            clean = x_prev
        reward = scale * clean.sum()
        squares = (mean(eps) - mean(ref_eps)) ** 2 / std**2
        kl = {"sum": squares.sum() / 2, "mean": squares.mean() / 2, "sqdf": squares.mean()}[reduce]
        gain = discount ** (49 - step) * reward - 2.0 * kl
        total += 0.0 if positive_only and reward <= 0 else gain
    return -total / len(STEPS)


def test_tweedies_estimate_inverts_the_noising() -> None:
    x_prev, eps = latents(1), latents(2)
    _, t_B = CHAIN.times(STEPS)
    clean = clean_by_tweedie(lambda x, t: eps, CHAIN)(x_prev, STEPS)
    alpha, sigma = SCHEDULE.alpha_sigma(t_B, x_prev)
    torch.testing.assert_close((alpha * clean + sigma * eps)[:-1], x_prev[:-1])
    torch.testing.assert_close(clean[-1], x_prev[-1])


@pytest.mark.parametrize("clean_by", [clean_by_tweedie, clean_by_consistency])
def test_after_the_last_step_the_latent_is_clean_whatever_a_network_says(
    clean_by: Callable[[NoiseModel, Chain], Clean],
) -> None:
    x_prev = latents(1).requires_grad_()
    clean = clean_by(lambda x, t_B: 1e3 * x, CHAIN)(x_prev, torch.full_like(STEPS, 49))
    assert torch.equal(clean, x_prev)
    (gradient,) = torch.autograd.grad(clean.sum(), x_prev)
    assert torch.equal(gradient, torch.ones_like(x_prev))


def test_ddim_calls_that_all_tell_the_same_noise_end_where_one_call_does() -> None:
    """With a constant ε the chain's path does not depend on how it is cut."""
    x_prev, eps = latents(1), latents(2)
    ends = [clean_by_ddim(lambda x, t: eps, CHAIN, calls)(x_prev, STEPS) for calls in (1, 4, 50)]
    torch.testing.assert_close(ends[1], ends[0])
    torch.testing.assert_close(ends[2], ends[0])
    torch.testing.assert_close(ends[0][-1], x_prev[-1])


def test_rows_with_few_steps_left_are_called_no_more_often_than_steps_are_left() -> None:
    seen: list[list[int]] = []

    def model(x: Tensor, t_B: Tensor) -> Tensor:
        seen.append(t_B.tolist())
        return x

    steps = torch.tensor([47])
    x = latents(0, 1)
    once = clean_by_ddim(model, CHAIN, 2)(x, steps)
    assert seen == [[21], [1]]
    torch.testing.assert_close(clean_by_ddim(model, CHAIN, 5)(x, steps), once)


def test_the_reward_reaches_the_policy_through_the_consistency_model_and_only_there() -> None:
    x, eps = latents(1), latents(3).requires_grad_()
    taken = take_step(x, eps, latents(4).requires_grad_(), latents(2), STEPS, CHAIN)
    weights = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    clean = clean_by_consistency(lambda z, t: weights.detach() * z, CHAIN)(taken.x_prev, STEPS)
    clean.sum().backward()
    assert weights.grad is None
    assert eps.grad is not None
    assert (eps.grad != 0).flatten(1).any(dim=1).all()


def test_alpha_follows_the_kl_to_its_target_and_never_jumps() -> None:
    assert adapted_alpha(1.0, kl=2.0, target=2.0) == 1.0
    assert adapted_alpha(1.0, kl=2.2, target=2.0) == pytest.approx(1.01)
    assert adapted_alpha(1.0, kl=100.0, target=2.0) == pytest.approx(1.02)
    assert adapted_alpha(1.0, kl=0.0, target=2.0) == pytest.approx(0.98)
    assert adapted_alpha(0.7, kl=float("nan"), target=2.0) == 0.7
