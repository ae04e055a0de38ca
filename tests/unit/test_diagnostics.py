"""What a policy gradient has to go by: against theory, autograd and torch's own densities."""

import math

import pytest
import torch
from torch import Tensor, nn

from actors.sampling import sample_few_steps
from learner.diagnostics import (
    Call,
    VectorSum,
    calls,
    gain,
    of_one_row,
    pathwise_gradients,
    policy_gradient,
    score_vectors,
    shares,
)
from learner.diffusion.consistency import consistency_prediction
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.schedule import NoiseSchedule, consistency_timesteps

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
SHAPE = (3, 2, 3, 3)


class Net(nn.Module):
    """A small network of x and t, not linear in either."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor, t_B: Tensor) -> Tensor:
        return torch.tanh(self.mix(x) + (t_B / 1000)[:, None, None, None])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def noises(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("omega", [1.0, 2.0])
def test_the_signal_to_noise_of_reinforce_is_rho_over_the_root_of_the_dimensions(
    omega: float,
) -> None:
    """r = sin(ω aᵀξ): ρ = ω exp(−ω²/2) / std r, in closed form."""
    dims, generator = 256, torch.Generator().manual_seed(0)
    axis = nn.functional.normalize(torch.randn(dims, generator=generator), dim=0)
    noise_KD = torch.randn(100_000, dims, generator=generator)
    reward_K = torch.sin(omega * noise_KD @ axis)
    advantage_K = (reward_K - reward_K.mean()) / reward_K.std()
    rho = omega * math.exp(-(omega**2) / 2) / ((1 - math.exp(-2 * omega**2)) / 2) ** 0.5
    measured = score_vectors(advantage_K, noise_KD)
    assert measured.signal**0.5 == pytest.approx(rho, rel=0.02)
    assert measured.snr == pytest.approx(rho / 16, rel=0.02)
    assert omega != 1 or measured.snr == pytest.approx(0.0577, abs=0.0006)


def test_a_reward_that_no_action_moves_has_a_signal_of_zero_but_for_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    signals = [
        score_vectors(
            torch.randn(64, generator=generator), torch.randn(64, 32, generator=generator)
        ).signal
        for _ in range(300)
    ]
    mean = sum(signals) / len(signals)
    spread = (sum((s - mean) ** 2 for s in signals) / len(signals)) ** 0.5
    assert abs(mean) < 3 * spread / len(signals) ** 0.5
    assert min(signals) < 0  # without bias, so not only above


def test_a_mean_vector_is_told_from_its_estimates_by_hand() -> None:
    total = VectorSum()
    for estimate in ([1.0, 0.0], [3.0, 4.0]):
        total.add(torch.tensor(estimate))
    found = total.mean()
    assert found.signal == pytest.approx(3.0)  # the product of the two
    assert (found.power, found.count) == (13.0, 2)
    assert found.snr == pytest.approx((3 / 10) ** 0.5)
    lonely = VectorSum()
    lonely.add(torch.zeros(2))
    with pytest.raises(ValueError, match="there are 1"):
        lonely.mean()


@pytest.mark.parametrize("sizes", [[20, 20, 20, 20], [7, 6, 6, 6, 6, 6]])
def test_means_over_rows_tell_what_one_row_does(sizes: list[int]) -> None:
    """Rows of mean (2, 0, ..., 0) and unit spread in each of 100 dimensions."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(400):
        parts = VectorSum()
        for size in sizes:
            rows = torch.randn(size, 100, generator=generator, dtype=torch.float64)
            rows[:, 0] += 2
            parts.add(rows.mean(dim=0))
        found.append(of_one_row(parts.mean(), sizes))
    signal = sum(each.signal for each in found) / len(found)
    power = sum(each.power for each in found) / len(found)
    assert signal == pytest.approx(4, rel=0.03)
    assert power == pytest.approx(104, rel=0.02)
    assert found[0].count == sum(sizes)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_chain_is_the_sampler_s(net: Net, steps: int) -> None:
    initial, *injected = noises(steps)
    chain = calls(net, SCHEDULE, initial, injected)
    drawn = sample_few_steps(
        lambda x, t_B, *_: net(x, t_B), ConsistencyChain(SCHEDULE, steps), None, initial, injected
    )
    for call, clean in zip(chain, drawn, strict=True):
        torch.testing.assert_close(call.clean, clean)
    assert chain[-1].noise is None


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_gradients_through_each_call_add_up_to_the_one_through_the_chain(
    net: Net, steps: int
) -> None:
    initial, *injected = noises(steps)
    (direction,) = noises(1, seed=5)
    weights = list(net.parameters())
    with torch.no_grad():
        chain = calls(net, SCHEDULE, initial, injected)
    parts = pathwise_gradients(net, SCHEDULE, chain, direction, weights)
    drawn = sample_few_steps(
        lambda x, t_B, *_: net(x, t_B), ConsistencyChain(SCHEDULE, steps), None, initial, injected
    )
    whole = (drawn[-1] * direction).flatten(1).sum(dim=1).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(whole, weights)])
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), expected)
    assert all(part.abs().max() > 0 for part in parts)


def test_a_policy_gradient_is_that_of_torch_s_own_density(net: Net) -> None:
    initial, noise = noises(2)
    advantage_B = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weights = list(net.parameters())
    with torch.no_grad():
        first, last = calls(net, SCHEDULE, initial, [noise])
    second_t = torch.full((3,), consistency_timesteps(2, 1000)[1])
    alpha, sigma = SCHEDULE.alpha_sigma(second_t, initial)
    clean = consistency_prediction(initial, net(initial, first.t_B), first.t_B, SCHEDULE)
    density = torch.distributions.Normal(alpha * clean, sigma)
    log_B = density.log_prob(last.x).flatten(1).sum(dim=1)
    loss = (advantage_B * log_B).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    found = policy_gradient(net, SCHEDULE, first, advantage_B, weights)
    torch.testing.assert_close(found, expected)
    assert not policy_gradient(net, SCHEDULE, last, advantage_B, weights).any()


def test_shares_count_what_is_below_zero_by_chance_as_nothing() -> None:
    assert shares([3.0, -1.0, 1.0]) == [0.75, 0.0, 0.25]
    assert shares([-1.0, 0.0]) == [0.0, 0.0]


def test_a_gain_is_that_of_a_linear_map() -> None:
    x, step = noises(2)
    torch.testing.assert_close(
        gain(3 * (x + step), 3 * x, step), torch.full((3,), 3.0, dtype=torch.float64)
    )


def test_a_call_keeps_what_went_in(net: Net) -> None:
    initial, noise = noises(2)
    first: Call = calls(net, SCHEDULE, initial, [noise])[0]
    assert first.x is initial
    assert first.noise is noise
    assert first.t_B.tolist() == [consistency_timesteps(2, 1000)[0]] * 3
