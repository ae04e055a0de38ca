"""Drift from the untouched model, of networks whose difference is known."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.drift import few_step_drift, many_step_kl
from actors.rollout import FewStepPolicy, Group, ManyStepPolicy
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.noise import group_noise
from learner.diffusion.schedule import NoiseSchedule

SHAPE = (4, 8, 8)
SIZE = math.prod(SHAPE)
SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
SHIFT = 0.25
GROUPS = [Group(0, "a cat", 11), Group(1, "a dog", 12)]


def off_by(shift: float) -> Callable[..., Tensor]:
    """Predicts some noise of the state, and `shift` more."""

    def predict(x_BCHW: Tensor, t_B: Tensor, prompts: Any, guidance_BE: Tensor | None) -> Tensor:
        return 0.1 * x_BCHW + shift

    return predict


def noises(count: int, rows: int = 3) -> list[Tensor]:
    return [group_noise(7, rows, SHAPE, stream) for stream in range(count)]


def many_steps(shift: float) -> Tensor:
    initial, *injected = noises(51)
    return many_step_kl(
        off_by(shift), off_by(0.0), SCHEDULE, None, initial, injected,
        num_steps=50, guidance_scale=1.0,
    )  # fmt: skip


def few_steps(shift: float, steps: int) -> tuple[Tensor, Tensor]:
    initial, *injected = noises(steps)
    chain = ConsistencyChain(SCHEDULE, steps)
    return few_step_drift(off_by(shift), off_by(0.0), chain, None, initial, injected)


def levels(timestep: int) -> tuple[float, float]:
    alpha_bar = float(SCHEDULE.alphas_cumprod_T[timestep])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def test_the_untouched_policy_has_no_kl_at_any_step() -> None:
    assert many_steps(0.0).abs().max() == 0


def test_every_step_of_a_long_chain_has_its_kl_by_hand() -> None:
    for step, kl in enumerate(many_steps(SHIFT)[0].tolist()):
        timestep = 981 - 20 * step
        (alpha, sigma), (previous_alpha, previous_sigma) = (
            levels(timestep),
            levels(max(timestep - 20, 0)),
        )
        std = previous_sigma / sigma * math.sqrt(1 - (alpha / previous_alpha) ** 2)
        factor = math.sqrt(max(previous_sigma**2 - std**2, 0)) - previous_alpha * sigma / alpha
        expected = 0.5 * SIZE * (factor * SHIFT / std) ** 2
        assert kl == pytest.approx(expected, rel=1e-3)


def test_rows_of_a_chain_do_not_change_each_other() -> None:
    initial, *injected = noises(51)
    alone = many_step_kl(
        off_by(SHIFT), off_by(0.0), SCHEDULE, None, initial[:1], [each[:1] for each in injected],
        num_steps=50, guidance_scale=1.0,
    )  # fmt: skip
    assert torch.equal(alone, many_steps(SHIFT)[:1])


def test_the_step_before_the_last_of_two_has_a_kl_and_the_last_a_distance() -> None:
    kl_BS, distance_B = few_steps(SHIFT, steps=2)
    # At 999 and 499 c_skip is below 1e-8, so the clean latents differ by shift · sigma / alpha.
    (alpha, sigma), (next_alpha, next_sigma) = levels(999), levels(499)
    first = SHIFT * sigma / alpha
    assert kl_BS.shape == (3, 1)
    assert kl_BS[:, 0].tolist() == pytest.approx(
        [0.5 * SIZE * (next_alpha * first / next_sigma) ** 2] * 3, rel=1e-4
    )
    assert distance_B.tolist() == pytest.approx([SHIFT * next_sigma / next_alpha] * 3, rel=1e-4)


def test_a_single_step_has_no_density_and_so_no_kl() -> None:
    kl_BS, distance_B = few_steps(SHIFT, steps=1)
    assert (kl_BS.shape, bool((distance_B > 0).all())) == ((3, 0), True)


def test_the_untouched_policy_has_no_drift_in_few_steps() -> None:
    kl_BS, distance_B = few_steps(0.0, steps=4)
    assert (kl_BS.shape, kl_BS.abs().max(), distance_B.max()) == ((3, 3), 0, 0)


def parts(shift: float, num_steps: int) -> dict[str, Any]:
    return {
        "network": off_by(shift),
        "base": off_by(0.0),
        "encode": lambda prompts: prompts,
        "take": lambda weights: None,
        "schedule": SCHEDULE,
        "latent_shape": SHAPE,
        "group_size": 1,
        "num_steps": num_steps,
        "guidance_scale": 1.0,
    }


def test_a_policy_of_few_steps_tells_what_it_has() -> None:
    told = [set(FewStepPolicy(**parts(SHIFT, steps)).drift(GROUPS)) for steps in (1, 2)]
    assert told == [{"clean_distance"}, {"clean_distance", "kl_nats"}]


def test_a_policy_of_many_steps_tells_the_mean_kl_of_a_step_of_every_row() -> None:
    policy = ManyStepPolicy(**parts(SHIFT, 50), keep=lambda seed: ())
    kl_B = policy.drift(GROUPS)["kl_nats"]
    # The networks differ by a constant, so every chain has the same KL.
    assert kl_B.tolist() == pytest.approx([float(many_steps(SHIFT)[0].mean())] * 2, rel=1e-4)
