"""The consistency step and its distillation, against diffusers' own code and known numbers."""

import math

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, LCMScheduler
from torch import Tensor

from learner.diffusion.consistency import (
    boundary_scalings,
    consistency_prediction,
    distillation_loss,
    distillation_times,
    guidance_embedding,
    pseudo_huber,
    teacher_step,
)
from learner.diffusion.schedule import NoiseSchedule, add_noise, consistency_timesteps

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
SCHEDULE = NoiseSchedule.from_config(CONFIG)


def seeded(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    ("num_steps", "grid"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_grid_of_few_steps_is_known(num_steps: int, grid: list[int]) -> None:
    assert consistency_timesteps(num_steps) == grid


@pytest.mark.parametrize("num_steps", range(1, 51))
def test_every_grid_is_diffusers_grid(num_steps: int) -> None:
    scheduler = LCMScheduler(**CONFIG)
    scheduler.set_timesteps(num_steps)
    assert consistency_timesteps(num_steps) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("num_steps", [0, 51])
def test_impossible_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        consistency_timesteps(num_steps)


def test_boundary_at_zero_is_the_identity() -> None:
    c_skip, c_out = boundary_scalings(torch.tensor([0]), torch.zeros(1, 1, 1, 1))
    assert (c_skip.item(), c_out.item()) == (1.0, 0.0)


@pytest.mark.parametrize(("t", "c_skip"), [(999, 2.5e-9), (499, 1.0e-8), (19, 6.9e-6)])
def test_boundary_hardly_matters_far_from_zero(t: int, c_skip: float) -> None:
    got, c_out = boundary_scalings(torch.tensor([t]), torch.zeros(1, dtype=torch.float64))
    assert got.item() == pytest.approx(c_skip, rel=0.01)
    assert c_out.item() == pytest.approx(1.0, abs=1e-5)


def test_prediction_at_zero_returns_its_input() -> None:
    x, eps = seeded(2, 3, 4, 2, 2)
    t = torch.zeros(3, dtype=torch.long)
    assert torch.equal(consistency_prediction(x, eps, t, SCHEDULE), x)


@pytest.mark.parametrize(
    ("t", "alpha", "sigma"), [(999, 0.06826, 0.99767), (499, 0.52694, 0.84990)]
)
def test_two_step_noise_levels_are_known(t: int, alpha: float, sigma: float) -> None:
    got_alpha, got_sigma = SCHEDULE.alpha_sigma(torch.tensor([t]), torch.zeros(1))
    assert got_alpha.item() == pytest.approx(alpha, abs=5e-6)
    assert got_sigma.item() == pytest.approx(sigma, abs=5e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_prediction_is_diffusers_denoised_at_every_step(num_steps: int) -> None:
    scheduler = LCMScheduler(**CONFIG)
    scheduler.set_timesteps(num_steps)
    x, eps = seeded(2, 3, 4, 4, 4)
    for t in scheduler.timesteps.tolist():
        _, expected = scheduler.step(eps, t, x, return_dict=False)
        ours = consistency_prediction(x, eps, torch.full((3,), t), SCHEDULE)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [256, 32, 33])
def test_guidance_embedding_is_diffusers_embedding(dim: int) -> None:
    w_B = torch.tensor([0.0, 2.0, 7.0, 7.5])
    # The method uses nothing of its pipeline.
    expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w_B, dim)  # pyright: ignore[reportArgumentType]
    # Angles reach 7,500 rad, where float32 resolves 5e-4.
    torch.testing.assert_close(guidance_embedding(w_B, dim), expected, rtol=0, atol=2e-3)


def test_distillation_goes_one_grid_point_towards_clean() -> None:
    start, end = distillation_times(torch.tensor([0, 1, 49]))
    assert (start.tolist(), end.tolist()) == ([19, 39, 999], [0, 19, 979])


def test_teacher_that_knows_the_noise_lands_on_the_true_trajectory() -> None:
    x0, noise = seeded(2, 3, 4, 2, 2, dtype=torch.float64)
    start, end = distillation_times(torch.tensor([0, 24, 49]))
    x_start = add_noise(x0, noise, start, SCHEDULE)
    landed = teacher_step(x_start, noise, start, end, SCHEDULE)
    torch.testing.assert_close(landed, add_noise(x0, noise, end, SCHEDULE))


def test_pseudo_huber_is_zero_at_zero() -> None:
    assert pseudo_huber(torch.zeros(1, 4, 2, 2)).item() == 0.0


def test_pseudo_huber_of_a_known_difference() -> None:
    difference = torch.full((1, 4, 2, 2), 3e-3, dtype=torch.float64)
    assert pseudo_huber(difference, c=4e-3).item() == pytest.approx(1e-3)


def test_pseudo_huber_is_nearly_linear_for_large_differences() -> None:
    assert math.isclose(pseudo_huber(torch.full((1, 4), 10.0)).item(), 9.999, rel_tol=1e-5)


def test_distillation_loss_is_zero_where_student_and_target_see_the_true_noise() -> None:
    x0, noise = seeded(2, 2, 4, 2, 2, dtype=torch.float64)
    start, end = distillation_times(torch.tensor([24, 49]))
    x_start, x_end = (add_noise(x0, noise, t, SCHEDULE) for t in (start, end))
    loss = distillation_loss(noise, lambda x, t: noise, x_start, x_end, start, end, SCHEDULE)
    # Not exactly zero: c_skip differs a little between the two times.
    assert loss.max().item() < 1e-6


def test_distillation_gives_the_target_network_no_gradient() -> None:
    x0, noise = seeded(2, 2, 4, 2, 2)
    start, end = distillation_times(torch.tensor([24, 49]))
    student, target = (torch.ones((), requires_grad=True) for _ in range(2))
    loss = distillation_loss(student * x0, lambda x, t: target * x, x0, noise, start, end, SCHEDULE)
    loss.sum().backward()
    assert student.grad is not None
    assert target.grad is None
