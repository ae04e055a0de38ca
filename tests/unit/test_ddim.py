"""The DDIM step against a float64 table and diffusers' own scheduler."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from learner.diffusion.ddim import ddim_moments, gaussian_kl, guided
from learner.diffusion.schedule import NoiseSchedule, add_noise, ddim_timesteps, predict_x0

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
SCHEDULE = NoiseSchedule.from_config(CONFIG)
# t, previous t, mean, std and true KL in nats of x = .5, eps = .1, reference eps = .3, D = 16.
# The KL of the last three is the same table's mean(Δ²)/std², times D / 2.
TABLE = [
    (981, 961, 0.538132272743705, 0.454463272413599, 0.084066853441730),
    (501, 481, 0.513109373590773, 0.294784540277385, 0.005690701552528 * 8),
    (21, 1, 0.491619053752977, 0.039479546140895, 0.428969402087944 * 8),
    (1, 0, 0.498142395152892, 0.020648320165302, 0.040255519533980 * 8),
]


def diffusers_ddim() -> DDIMScheduler:
    scheduler = DDIMScheduler(**CONFIG, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(50)
    return scheduler


def moments_of_table(t: int, prev_t: int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.full((1, 4, 2, 2), 0.5, dtype=torch.float64)
    times = torch.tensor([t]), torch.tensor([prev_t])
    return ddim_moments(x, torch.full_like(x, eps), *times, SCHEDULE)


@pytest.mark.parametrize(("t", "prev_t", "mean", "std", "kl"), TABLE)
def test_mean_of_a_step_is_the_tables(
    t: int, prev_t: int, mean: float, std: float, kl: float
) -> None:
    got, _ = moments_of_table(t, prev_t, eps=0.1)
    torch.testing.assert_close(got, torch.full_like(got, mean), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("t", "prev_t", "mean", "std", "kl"), TABLE)
def test_std_of_a_step_is_the_tables(
    t: int, prev_t: int, mean: float, std: float, kl: float
) -> None:
    _, got = moments_of_table(t, prev_t, eps=0.1)
    assert got.item() == pytest.approx(std, rel=1e-5)


@pytest.mark.parametrize(("t", "prev_t", "mean", "std", "kl"), TABLE)
def test_true_kl_of_a_step_is_the_tables(
    t: int, prev_t: int, mean: float, std: float, kl: float
) -> None:
    policy_mean, policy_std = moments_of_table(t, prev_t, eps=0.1)
    reference_mean, _ = moments_of_table(t, prev_t, eps=0.3)
    got = gaussian_kl(policy_mean, reference_mean, policy_std)
    assert got.item() == pytest.approx(kl, rel=1e-4)


def test_kl_conventions_differ_by_the_number_of_dimensions() -> None:
    mean, std = moments_of_table(501, 481, eps=0.1)
    reference, _ = moments_of_table(501, 481, eps=0.3)
    total = gaussian_kl(mean, reference, std, reduce="sum").item()
    assert gaussian_kl(mean, reference, std, reduce="mean").item() == pytest.approx(total / 16)
    assert gaussian_kl(mean, reference, std, reduce="sqdf").item() == pytest.approx(total / 8)


def test_kl_agrees_with_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, reference = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    std = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    independent = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(reference, std)
    )
    torch.testing.assert_close(gaussian_kl(mean, reference, std), independent.flatten(1).sum(1))


@pytest.mark.parametrize("num_steps", [1, 2, 10, 20, 50, 100])
def test_grid_is_diffusers_leading_grid(num_steps: int) -> None:
    scheduler = diffusers_ddim()
    scheduler.set_timesteps(num_steps)
    assert ddim_timesteps(num_steps) == scheduler.timesteps.tolist()


def test_fifty_steps_run_from_981_to_1() -> None:
    grid = ddim_timesteps(50)
    assert (grid[0], grid[1], grid[-2], grid[-1], len(grid)) == (981, 961, 21, 1, 50)


def test_step_is_diffusers_step_on_the_same_noise() -> None:
    scheduler = diffusers_ddim()
    generator = torch.Generator().manual_seed(0)
    x, eps, noise = torch.randn(3, 2, 4, 4, 4, generator=generator)
    for t in scheduler.timesteps.tolist():
        expected = scheduler.step(eps, t, x, eta=1.0, variance_noise=noise, return_dict=False)[0]
        rows = torch.tensor([t, t])
        mean, std = ddim_moments(x, eps, rows, (rows - 20).clamp(min=0), SCHEDULE)
        torch.testing.assert_close(mean + std * noise, expected, rtol=1e-4, atol=1e-5)


def test_eta_zero_is_deterministic() -> None:
    x = torch.ones(1, 4, 2, 2)
    _, std = ddim_moments(x, x, torch.tensor([981]), torch.tensor([961]), SCHEDULE, eta=0.0)
    assert std.item() == 0.0


def test_rows_at_different_timesteps_do_not_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 2, 4, 4, 4, generator=generator)
    t, prev_t = torch.tensor([981, 21]), torch.tensor([961, 1])
    mean, std = ddim_moments(x, eps, t, prev_t, SCHEDULE)
    alone_mean, alone_std = ddim_moments(x[1:], eps[1:], t[1:], prev_t[1:], SCHEDULE)
    assert torch.equal(mean[1:], alone_mean)
    assert torch.equal(std[1:], alone_std)


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    cond, uncond = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided(cond, uncond, 1.0), cond)


def test_predicting_the_noise_that_was_added_gives_the_clean_latent_back() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 500, 999])
    x_t = add_noise(x0, noise, t, SCHEDULE)
    torch.testing.assert_close(predict_x0(x_t, noise, t, SCHEDULE), x0)


def test_signal_and_noise_keep_unit_variance() -> None:
    alpha, sigma = SCHEDULE.alpha_sigma(torch.arange(1000), torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_schedule_is_diffusers_schedule(beta_schedule: str) -> None:
    config = {**CONFIG, "beta_schedule": beta_schedule}
    ours = NoiseSchedule.from_config(config).alphas_cumprod_T.float()
    torch.testing.assert_close(ours, DDIMScheduler(**config).alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_steps", [0, 1000])
def test_impossible_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        ddim_timesteps(num_steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "v_prediction"}, "v_prediction"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
    ],
)
def test_unsupported_schedule_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_config({**CONFIG, **change})


def test_last_step_is_small_but_not_deterministic() -> None:
    _, std = moments_of_table(1, 0, eps=0.1)
    assert math.isclose(std.item() ** 2, 0.000426353, rel_tol=1e-4)
