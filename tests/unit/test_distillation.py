"""A batch of distillation: where the guided teacher leads, and how far from there a policy is.

Known answers come from the schedule's betas alone, number by number.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.diffusion.schedule import NoiseSchedule
from learner.methods.distillation import Distilled, distillation_error, distilled
from learner.policy.text import Text

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
KEPT_T = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
INDEX_B, START_B, END_B = torch.tensor([3, 40]), [79, 819], [59, 799]
SHAPE = (2, 1, 2, 2)


def levels(t: int) -> tuple[float, float]:
    """Of signal and of noise."""
    return KEPT_T[t] ** 0.5, (1 - KEPT_T[t]) ** 0.5


def text_of(*values: float) -> Text:
    return Text(torch.stack([torch.full((5, 8), value) for value in values]))


def told(text: Text, like: Tensor) -> Tensor:
    """The mean of a row's text, at every place of its latent."""
    return text.states_BLE.mean(dim=(1, 2))[:, None, None, None].expand_as(like)


def batch(
    scale: Tensor | float = 1.0, guidance_scale: float = 3.0, asked: list[int] | None = None
) -> Distilled:
    """Ones and twos, noised by halves, and a teacher that says `scale` times what it is told."""

    def teacher(x: Tensor, t_B: Tensor, text: Text) -> Tensor:
        if asked is not None:
            asked.append(len(x))
        return scale * told(text, x)

    return distilled(
        teacher,
        torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).expand(SHAPE),
        torch.full(SHAPE, 0.5),
        INDEX_B,
        text_of(0.7, -0.4),
        text_of(0.1, 0.2),
        SCHEDULE,
        guidance_scale=guidance_scale,
    )


def test_a_batch_begins_at_the_noised_latents() -> None:
    found = batch()
    assert (found.start_B.tolist(), found.end_B.tolist()) == (START_B, END_B)
    for row, clean, t in zip(found.x_start, (1.0, 2.0), START_B, strict=True):
        signal, noise = levels(t)
        assert row.flatten().tolist() == pytest.approx([signal * clean + noise * 0.5] * 4)


def test_the_teacher_leads_one_step_on_by_its_guided_noise() -> None:
    found = batch()
    # Empty text, and three times the way from there to the prompt's.
    for i, eps in enumerate((0.1 + 3 * (0.7 - 0.1), 0.2 + 3 * (-0.4 - 0.2))):
        (signal, noise), (end_signal, end_noise) = levels(START_B[i]), levels(END_B[i])
        clean = (float(found.x_start[i, 0, 0, 0]) - noise * eps) / signal
        expected = end_signal * clean + end_noise * eps
        assert found.x_end[i].flatten().tolist() == pytest.approx([expected] * 4, rel=1e-5)


def test_a_teacher_without_guidance_is_asked_for_the_prompts_alone() -> None:
    asked: list[int] = []
    alone = batch(guidance_scale=1.0, asked=asked)
    almost = batch(guidance_scale=1.0 + 1e-6, asked=asked)
    assert asked == [2, 4]
    torch.testing.assert_close(alone.x_end, almost.x_end, rtol=1e-4, atol=1e-5)


def test_the_teacher_gets_no_gradient() -> None:
    assert not batch(torch.ones((), requires_grad=True)).x_end.requires_grad


def a_target(scale: Tensor | float = 0.3) -> Any:
    """Whose noise is of all that it is asked with."""

    def target(x: Tensor, t_B: Tensor, text: Text, guidance: Tensor) -> Tensor:
        return scale * x + told(text, x) + guidance[:, None, None] + t_B[:, None, None, None] / 1e4

    return target


GUIDANCE = torch.tensor([[0.05], [-0.15]])


def clean_of(x: float, eps: float, t: int) -> float:
    """The clean latent that a consistency model's call tells (Luo et al. 2023)."""
    signal, noise = levels(t)
    scaled = 10.0 * t
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
    return skip * x + out * (x - noise * eps) / signal


def test_the_error_is_from_the_clean_latent_that_the_target_tells_one_step_on() -> None:
    found, eps = batch(), torch.tensor([0.4, -0.9])
    error_B = distillation_error(
        eps.reshape(2, 1, 1, 1).expand(SHAPE), a_target(), found, GUIDANCE, SCHEDULE
    )
    expected = []
    for i, prompt in enumerate((0.7, -0.4)):
        start, end = float(found.x_start[i, 0, 0, 0]), float(found.x_end[i, 0, 0, 0])
        goal_eps = 0.3 * end + prompt + float(GUIDANCE[i]) + END_B[i] / 1e4
        goal = clean_of(end, goal_eps, END_B[i])
        difference = clean_of(start, float(eps[i]), START_B[i]) - goal
        expected.append((difference**2 + 0.001**2) ** 0.5 - 0.001)
    assert error_B.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_error_gives_the_policy_a_gradient_and_its_target_none() -> None:
    eps, scale = torch.zeros(SHAPE, requires_grad=True), torch.ones((), requires_grad=True)
    distillation_error(eps, a_target(scale), batch(), GUIDANCE, SCHEDULE).sum().backward()
    assert eps.grad is not None
    assert scale.grad is None
