"""GORS' and DPO's policy steps: whose gradient flows, and what cutting a batch changes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from learner.clean_latents import CleanBatch, PairBatch
from learner.diffusion.schedule import NoiseSchedule, add_noise, predict_x0
from learner.methods.likelihood_policy import DpoPolicy, GorsPolicy, Guidance
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.views import shared_view
from learner.seat import Seat
from learner.settings.likelihood import Dpo, Gors
from tests.unit.learner_fakes import HandEngine, adapted, assert_down, base, encode, gradients

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
PROMPTS = ["a red circle", "a blue star", "two hearts", "a cat"]
METHODS = ["gors", "gors-lcm", "dpo"]


def clean(seed: int, rewards: tuple[float, ...] = (1.0, 0.5, 2.0, 0.1)) -> CleanBatch:
    generator = torch.Generator().manual_seed(seed)
    return CleanBatch(torch.randn(4, 4, 8, 8, generator=generator), PROMPTS, torch.tensor(rewards))


def stepped(
    method: str,
    seat: Seat | None = None,
    unet: Any = None,
    batch: CleanBatch | None = None,
    teacher: Denoiser | None = None,
    guidance: Guidance = lambda rows: None,
    **changes: Any,
) -> tuple[dict[str, float], HandEngine]:
    unet, seat = unet or base(), seat or Seat(7)
    engine: Any = HandEngine(adapted(unet))
    frozen = Denoiser(shared_view(unet))
    mine, settings = (batch or clean(8)).rows(seat.share), {"policy_batch": 4, **changes}
    if method == "dpo":
        policy = DpoPolicy(
            Dpo.model_validate({"beta": 10.0, **settings}),
            engine,
            SCHEDULE,
            encode,
            frozen,
            seat=seat,
        )
        return policy.step(PairBatch(mine, clean(9).rows(seat.share))), engine
    policy = GorsPolicy(
        Gors.model_validate(settings),
        engine,
        SCHEDULE,
        encode,
        (teacher or frozen) if method == "gors-lcm" else None,
        guidance,
        guidance_scale=3.0,
        seat=seat,
    )
    return policy.step(mine), engine


@pytest.mark.parametrize("method", METHODS)
def test_all_of_the_adapter_learns_and_nothing_else(method: str) -> None:
    unet = base()
    _, engine = stepped(method, unet=unet)
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    assert len(gradients(engine)) == len(trained)
    assert all(bool(g.abs().sum() > 0) for g in gradients(engine))
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_and_micro_batches_have_the_gradient_of_one(method: str) -> None:
    _, whole = stepped(method)
    _, parts = stepped(method, micro_batches=2)
    halves = [gradients(stepped(method, Seat(7, rank, 2))[1]) for rank in (0, 1)]
    for together, part, a, b in zip(gradients(whole), gradients(parts), *halves, strict=True):
        torch.testing.assert_close(part, together, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close((a + b) / 2, together, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["gors", "gors-lcm"])
def test_pictures_without_a_reward_teach_nothing(method: str) -> None:
    _, engine = stepped(method, batch=clean(8, (0.0, -1.0, 0.0, -2.0)))
    assert all(bool((g == 0).all()) for g in gradients(engine))


def test_dpo_noises_both_of_a_pair_alike() -> None:
    """Equal pictures are equally well denoised, so that nothing is preferred."""
    metrics, engine = stepped("dpo", batch=clean(9))
    assert metrics["dpo_loss"] == pytest.approx(float(torch.log(torch.tensor(2.0))), abs=1e-6)
    assert all(float(g.abs().max()) < 1e-6 for g in gradients(engine))


def drawn(num_times: int) -> tuple[Tensor, Tensor]:
    """Noise and times of the first step, as a run of this seed draws them."""
    generator = step_generator(7, 0)
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    return noise, torch.randint(num_times, (4,), generator=generator)


def error_of(network: Denoiser, latents: Tensor) -> Tensor:
    """How far it is from the noise that it was shown, [B]."""
    noise, t_B = drawn(1000)
    told = network(add_noise(latents, noise, t_B, SCHEDULE), t_B, encode(PROMPTS))
    return ((told - noise) ** 2).mean(dim=(1, 2, 3))


def test_gors_goes_down_the_error_of_the_noise_weighted_by_the_reward() -> None:
    unet = base()
    _, engine = stepped("gors", unet=unet)
    network, batch = adapted(unet), clean(8)
    loss = (batch.reward_B * error_of(network, batch.latents_BCHW)).mean()
    assert_down(loss, network, engine)


@pytest.mark.parametrize("dim", [None, 16])
def test_gors_of_few_steps_goes_down_its_distance_from_itself_one_guided_step_on(
    dim: int | None,
) -> None:
    """The step is of its teacher, which is asked with and without the prompt."""
    unet, teacher, scale = base(time_cond_proj_dim=dim), Denoiser(base()), 3.0
    _, engine = stepped(
        "gors-lcm",
        unet=unet,
        teacher=teacher,
        guidance=lambda rows: guidance_rows(scale, dim, rows, "cpu"),
    )
    network, batch, (noise, index_B) = adapted(unet), clean(8), drawn(50)
    start_B, end_B = 20 * index_B + 19, (20 * index_B - 1).clamp(min=0)
    text, empty, guidance = encode(PROMPTS), encode([""] * 4), guidance_rows(scale, dim, 4, "cpu")

    def told(x: Tensor, t_B: Tensor) -> Tensor:
        scaled = 10.0 * t_B.reshape(-1, 1, 1, 1)
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        return skip * x + out * predict_x0(x, network(x, t_B, text, guidance), t_B, SCHEDULE)

    start = add_noise(batch.latents_BCHW, noise, start_B, SCHEDULE)
    unguided = teacher(start, start_B, empty)
    eps = unguided + scale * (teacher(start, start_B, text) - unguided)
    end = add_noise(predict_x0(start, eps, start_B, SCHEDULE), eps, end_B, SCHEDULE)
    difference = told(start, start_B) - told(end, end_B).detach()
    error_B = ((difference**2 + 0.001**2).sqrt() - 0.001).mean(dim=(1, 2, 3))
    assert_down((batch.reward_B * error_B).mean(), network, engine)


def test_dpo_goes_down_the_winners_error_against_the_losers() -> None:
    unet = base()
    _, engine = stepped("dpo", unet=unet)
    network, untouched = adapted(unet), Denoiser(unet)
    winner_B, loser_B = (
        error_of(network, pictures) - error_of(untouched, pictures).detach()
        for pictures in (clean(8).latents_BCHW, clean(9).latents_BCHW)
    )
    loss = torch.log1p(torch.exp(10.0 / 2 * (winner_B - loser_B))).mean()
    assert_down(loss, network, engine)
