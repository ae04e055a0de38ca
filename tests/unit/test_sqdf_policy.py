"""SQDF's policy step: whose gradient flows, what is drawn, and what cutting a batch changes."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.ddim import ddim_moments, guided
from learner.diffusion.schedule import NoiseSchedule, predict_x0
from learner.methods.sqdf_policy import SqdfPolicy
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.policy.views import shared_view
from learner.seat import Seat
from learner.settings.sqdf import Sqdf
from learner.states import StateBatch, strata_of
from tests.unit.learner_fakes import HandEngine, adapted, base, encode, gradients

CHAIN = Chain(
    NoiseSchedule.from_config(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    )
)
PROMPTS = ["a red circle", "a blue star", "two hearts", "a cat"]
CONSISTENCY = {"by": "consistency", "lora": "unused"}


def brightness(x: Tensor, text: Text, prompts: Sequence[str]) -> Tensor:
    return x.flatten(1).mean(dim=1) + text.states_BLE.flatten(1).mean(dim=1)


def batch(rows: slice = slice(None)) -> StateBatch:
    generator = torch.Generator().manual_seed(8)
    latents = torch.randn(4, 4, 8, 8, generator=generator)
    steps = torch.tensor([3, 25, 47, 49])
    return StateBatch(latents[rows], steps[rows], PROMPTS[rows])


def policy_of(
    settings: dict[str, Any] | None = None,
    *,
    unet: Any = None,
    denoiser: Denoiser | None = None,
    reward: Any = brightness,
    guidance_scale: float = 3.0,
    seat: Seat | None = None,
) -> tuple[SqdfPolicy, HandEngine]:
    unet = unet or base()
    engine = HandEngine(denoiser or adapted(unet))
    settings = {"clean": CONSISTENCY, "policy_batch": 4, **(settings or {})}
    policy = SqdfPolicy(
        Sqdf.model_validate(settings),
        engine,  # pyright: ignore[reportArgumentType]
        CHAIN,
        encode,
        Denoiser(shared_view(unet)),
        Denoiser(shared_view(unet)) if settings["clean"]["by"] == "consistency" else None,
        reward,
        guidance_scale=guidance_scale,
        seat=seat or Seat(7),
    )
    return policy, engine


@pytest.mark.parametrize(
    "clean", [CONSISTENCY, {"by": "tweedie"}, {"by": "ddim", "calls": 2}], ids=lambda c: c["by"]
)
def test_all_of_the_adapter_learns_and_nothing_else(clean: dict[str, Any]) -> None:
    unet = base()
    policy, engine = policy_of({"clean": clean}, unet=unet)
    policy.step(batch())
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    assert len(gradients(engine)) == len(trained)
    assert all(bool(g.abs().sum() > 0) for g in gradients(engine))
    assert all(p.grad is None for p in unet.parameters())


def test_an_untouched_policy_has_no_kl_and_no_gradient_of_it() -> None:
    unet = base()
    view = shared_view(unet)
    make_trainable(view, "lora", rank=2, alpha=2, seed=1)
    policy, engine = policy_of(
        {"alpha": 1e6}, unet=unet, denoiser=Denoiser(view), reward=lambda x, *_: 0 * x[:, 0, 0, 0]
    )
    metrics = policy.step(batch())
    assert metrics["kl_nats"] == 0
    assert all(bool((g == 0).all()) for g in gradients(engine))


def test_a_large_alpha_pulls_back_to_the_reference() -> None:
    policy, engine = policy_of({"alpha": 100.0, "learning_rate": 1e-3})
    before = policy.step(batch())["kl_nats"]
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad / parameter.grad.norm()
                parameter.grad = None
    again, _ = policy_of({"alpha": 100.0}, denoiser=engine.module)  # pyright: ignore
    assert again.step(batch())["kl_nats"] < before


def test_two_ranks_have_the_gradient_of_one() -> None:
    whole, engine = policy_of()
    whole.step(batch())
    halves = []
    for rank in (0, 1):
        policy, half = policy_of(seat=Seat(7, rank, 2))
        policy.step(batch(slice(rank, None, 2)))
        halves.append(gradients(half))
    for together, a, b in zip(gradients(engine), *halves, strict=True):
        torch.testing.assert_close((a + b) / 2, together, rtol=1e-4, atol=1e-7)


def test_micro_batches_have_the_gradient_of_the_whole() -> None:
    whole, engine = policy_of()
    metrics = whole.step(batch())
    parts, cut = policy_of({"micro_batches": 2})
    cut_metrics = parts.step(batch())
    assert cut.micro_batches == 2
    assert cut_metrics == pytest.approx(metrics, rel=1e-4)
    for together, apart in zip(gradients(engine), gradients(cut), strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-7)


def test_activations_that_are_computed_again_give_the_same_gradient() -> None:
    # Under another network's adapter the recomputed ones would differ.
    plain, engine = policy_of()
    plain.step(batch())
    unet = base()
    denoiser = adapted(unet)
    for network in (unet, denoiser.unet):
        network.enable_gradient_checkpointing()
    again, checkpointed = policy_of(unet=unet, denoiser=denoiser)
    calls: list[int] = []
    resnet: Any = denoiser.unet.get_submodule("down_blocks.0.resnets.0")
    resnet.register_forward_pre_hook(lambda *_: calls.append(1))
    again.step(batch())
    assert len(calls) == 2
    for kept, recomputed in zip(gradients(engine), gradients(checkpointed), strict=True):
        torch.testing.assert_close(recomputed, kept)


def test_the_noise_of_a_step_is_drawn_anew_at_the_next() -> None:
    seen: list[Tensor] = []

    def reward(x: Tensor, text: Text, prompts: Sequence[str]) -> Tensor:
        seen.append(x.detach())
        return brightness(x, text, prompts)

    policy, _ = policy_of(reward=reward)
    policy.step(batch())
    policy.step(batch())
    again, _ = policy_of(reward=reward)
    again.step(batch())
    assert not torch.allclose(seen[0], seen[1])
    torch.testing.assert_close(seen[2], seen[0])


def test_the_discount_weighs_rewards_in_the_loss_or_in_the_draw_and_never_in_both() -> None:
    in_loss = policy_of({"discount": 0.5})[0].step(batch())
    in_draw = policy_of({"discount": 0.5, "states": {"times": "discounted"}})[0].step(batch())
    assert in_draw["weighted_reward"] == pytest.approx(in_draw["surrogate_reward"])
    assert in_loss["weighted_reward"] != pytest.approx(in_loss["surrogate_reward"])


def test_the_references_stored_noise_saves_its_call_and_little_precision() -> None:
    unet = base()
    asked, engine = policy_of({"kl_reduce": "sum"}, unet=unet)
    given, other = policy_of({"kl_reduce": "sum"}, unet=unet)
    with torch.no_grad():
        x, t_B = batch().latents_BCHW, CHAIN.state_times(batch().step_B)
        doubled = Text.cat([encode([""] * 4), encode(PROMPTS)])
        ref_eps = guided(
            *Denoiser(unet)(torch.cat([x, x]), torch.cat([t_B, t_B]), doubled).chunk(2)[::-1], 3.0
        )
    stored = dataclasses.replace(batch(), ref_eps_BCHW=ref_eps.half().float())
    expected = asked.step(batch())
    given._reference = None  # pyright: ignore  it is not to be called
    metrics = given.step(stored)
    assert metrics["kl_nats"] == pytest.approx(expected["kl_nats"], rel=1e-2)
    for rounded, exact in zip(gradients(other), gradients(engine), strict=True):
        assert float((rounded - exact).norm()) <= 1e-2 * float(exact.norm())


def test_the_gradient_is_that_of_the_discounted_reward_less_the_kl_by_the_forward_process() -> None:
    """Beside the same maths on the bare networks."""
    unet = base()
    settings = {"clean": {"by": "tweedie"}, "alpha": 0.3, "discount": 0.5}
    policy, engine = policy_of(
        {**settings, "kl_std": "forward", "kl_reduce": "mean"}, unet=unet, guidance_scale=1.0
    )
    policy.step(batch())
    network, untouched, text = adapted(unet), Denoiser(unet), encode(PROMPTS)
    x, step_B, schedule = batch().latents_BCHW, batch().step_B, CHAIN.schedule
    (t_B, next_t_B), ends_B = CHAIN.times(step_B), step_B == 49
    noise = torch.randn(4, 4, 8, 8, generator=step_generator(7, 0))
    mean, std = ddim_moments(x, network(x, t_B, text), t_B, next_t_B, schedule)
    ref_mean, _ = ddim_moments(x, untouched(x, t_B, text).detach(), t_B, next_t_B, schedule)
    x_next = mean + std * noise
    told = predict_x0(x_next, untouched(x_next, next_t_B, text), next_t_B, schedule)
    clean = torch.where(ends_B[:, None, None, None], x_next, told)
    variance_B = 1 - schedule.alphas_cumprod_T[t_B] / schedule.alphas_cumprod_T[next_t_B]
    kl_B = 0.5 * (mean - ref_mean).square().mean(dim=(1, 2, 3)) / variance_B
    gain_B = 0.5 ** (49 - step_B) * brightness(clean, text, PROMPTS) - 0.3 * kl_B
    trained = [p for p in network.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(-gain_B.mean().float(), trained)
    for mine, other in zip(gradients(engine), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)


def test_guidance_of_one_makes_one_call_of_single_width() -> None:
    policy, engine = policy_of(guidance_scale=1.0)
    seen: list[int] = []
    engine.module.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    policy.step(batch())
    assert seen == [4]


def test_alpha_is_steered_to_the_target_kl() -> None:
    policy, _ = policy_of({"target_kl": 1e-9, "alpha": 1.0})
    policy.step(batch())
    assert policy.alpha == pytest.approx(1.02)
    assert policy.steps_taken == 1


def test_a_weight_that_is_steered_survives_json() -> None:
    policy, _ = policy_of({"target_kl": 1e-9})
    policy.step(batch())
    resumed, _ = policy_of({"target_kl": 1e-9})
    resumed.from_json(json.loads(json.dumps(policy.to_json())))
    assert resumed.to_json() == policy.to_json()


def test_a_weight_that_nothing_steers_is_that_of_the_settings() -> None:
    policy, _ = policy_of({"alpha": 0.2})
    policy.from_json({"step": 3, "alpha": 5.0})
    assert (policy.steps_taken, policy.alpha) == (3, 0.2)


@pytest.mark.parametrize(("times", "expected"), [("discounted", 0.9), ("uniform", 1.0)])
@pytest.mark.parametrize("keep", ["spread", "last"])
def test_states_are_drawn_by_the_discount_where_it_is_not_in_the_loss(
    times: str, keep: str, expected: float
) -> None:
    states = {"times": times, "keep": keep}
    settings = Sqdf.model_validate({"clean": CONSISTENCY, "discount": 0.9, "states": states})
    assert strata_of(settings, 50).discount == expected
