"""PPO's policy step: whose gradient flows, what the clip holds, what cutting a batch changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.schedule import NoiseSchedule
from learner.methods.ddpo import clipped_loss, log_ratio
from learner.methods.ppo_policy import PpoPolicy
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.text import Text
from learner.policy.views import policy_over, shared_view
from learner.settings.model import Model
from learner.settings.on_policy import Ppo
from learner.settings.types import Precision
from learner.transitions import Transitions
from tests.unit.learner_fakes import HandEngine, adapted, assert_down, base, encode, gradients

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
CHAINS = {"many": Chain(SCHEDULE), "few": ConsistencyChain(SCHEDULE, 2)}
KL_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda squares: squares.sum(dim=1) / 2,
    "mean": lambda squares: squares.mean(dim=1) / 2,
    "sqdf": lambda squares: squares.mean(dim=1),
}
PROMPTS = ["a red circle", "a blue star", "two hearts", "a cat"]


def taken(kind: str = "many", advantages: tuple[float, ...] = (1.0, -0.5, 2.0, 0.0)) -> Transitions:
    generator = torch.Generator().manual_seed(8)
    return Transitions(
        latents_BCHW=torch.randn(4, 4, 8, 8, generator=generator),
        step_B=torch.tensor([3, 25, 47, 49]) if kind == "many" else torch.tensor([0, 0, 1, 0]),
        noise_BCHW=torch.randn(4, 4, 8, 8, generator=generator),
        prompts=PROMPTS,
        advantage_B=torch.tensor(advantages),
        weight_B=torch.tensor([1.5, 0.5, 1.0, 1.0]),
    )


def plain(network: Any, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
    return network(x, t_B, text)


def policy_of(
    kind: str = "many", denoiser: Denoiser | None = None, unet: Any = None, **settings: Any
) -> tuple[PpoPolicy, HandEngine]:
    unet = unet or base()
    engine = HandEngine(denoiser or adapted(unet))
    policy = PpoPolicy(
        Ppo.model_validate({"policy_batch": 4, **settings}),
        engine,  # pyright: ignore[reportArgumentType]
        CHAINS[kind],
        encode,
        plain,
        Denoiser(shared_view(unet)) if settings.get("alpha") else None,
    )
    return policy, engine


@pytest.mark.parametrize("kind", CHAINS)
def test_before_the_first_update_every_ratio_is_one_and_nothing_is_clipped(kind: str) -> None:
    policy, engine = policy_of(kind)
    metrics = policy.step(policy.remembered(taken(kind), rows_at_once=4))
    assert (metrics["ratio"], metrics["clip_fraction"]) == (1.0, 0.0)
    assert metrics["policy_loss"] == pytest.approx(-(1.0 - 0.5 + 2.0) / 4)
    assert all(bool(g.abs().sum() > 0) for g in gradients(engine))


def test_rounding_to_bf16_alone_moves_ratios_beyond_the_clip() -> None:
    """Why `ppo` with a narrow clip is refused in bf16: mostly rows of bad pictures are held."""
    model = Model(path="deploy/shapes/pipelines/lcm", num_steps=2, lora_rank=4, lora_alpha=4)
    pipeline = PipelineFolder.of(model)
    chain, text = pipeline.few_step_chain(2), pipeline.prompt_encoder()(["a red circle"] * 8)
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(8, 4, 32, 32, generator=generator) for _ in range(2))
    step_B, bad_B = torch.zeros(8, dtype=torch.long), -torch.ones(8)
    t_B = chain.times(step_B)[0]

    def held(precision: Precision) -> float:
        unet = policy_over(pipeline.unet().requires_grad_(False), model, seed=0)
        guidance = guidance_rows(1.0, unet.config["time_cond_proj_dim"], 8, "cpu")
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01, generator=generator.manual_seed(1))
        network = Denoiser(unet, precision)
        with torch.no_grad():
            old, std = chain.moments(x, network(x, t_B, text, guidance), step_B)
            for parameter in unet.parameters():
                parameter += 1e-6 * parameter.requires_grad
            now, _ = chain.moments(x, network(x, t_B, text, guidance), step_B)
        return clipped_loss(log_ratio(now, old, std, noise), bad_B, Ppo().ratio_clip).share

    assert held("fp32") == 0.0
    assert held("bf16") > 0.3


def test_all_of_the_adapter_learns_and_nothing_else() -> None:
    unet = base()
    policy, engine = policy_of(unet=unet, alpha=0.1)
    policy.step(policy.remembered(taken(), rows_at_once=2))
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    assert len(gradients(engine)) == len(trained)
    assert all(p.grad is None for p in unet.parameters())


def test_nothing_is_learned_from_pictures_that_are_no_better_than_others() -> None:
    policy, engine = policy_of()
    policy.step(policy.remembered(taken(advantages=(0.0,) * 4), rows_at_once=4))
    assert all(bool((g == 0).all()) for g in gradients(engine))


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("form", [None, *KL_FORMS])
def test_the_gradient_is_that_of_the_loss_on_the_whole_batch(kind: str, form: str | None) -> None:
    """Beside the same maths on the bare network, after the policy has moved from its samples."""
    unet, chain = base(), CHAINS[kind]
    before, now = adapted(unet), adapted(unet)
    with torch.no_grad():
        for parameter in now.parameters():
            if parameter.requires_grad:
                parameter += 1e-4 * torch.ones_like(parameter)
    old, _ = policy_of(kind, before)
    rows = old.remembered(taken(kind), rows_at_once=1)
    kl = {"alpha": 0.5, "kl_reduce": form} if form else {}
    policy, engine = policy_of(kind, now, unet, ratio_clip=0.5, micro_batches=2, **kl)
    policy.step(rows)
    text, (t_B, _), x = encode(PROMPTS), chain.times(rows.step_B), rows.latents_BCHW
    (mean, std), (old_mean, _), (ref_mean, _) = (
        chain.moments(x, network(x, t_B, text), rows.step_B)
        for network in (now, before, Denoiser(unet))
    )
    log_ratio_B = log_ratio(mean, old_mean.detach(), std, rows.noise_BCHW)
    loss_B = clipped_loss(log_ratio_B, rows.advantage_B, 0.5).loss_B
    if form:
        loss_B = loss_B + 0.5 * KL_FORMS[form](((mean - ref_mean) / std).square().flatten(1))
    assert_down((rows.weight_B * loss_B).mean(), now, engine)


def test_steps_that_moved_beyond_the_clip_are_counted() -> None:
    unet = base()
    old, _ = policy_of(denoiser=adapted(unet))
    rows = old.remembered(taken(advantages=(1.0, 1.0, -1.0, -1.0)), rows_at_once=4)
    policy, engine = policy_of(denoiser=adapted(unet), ratio_clip=1e-6)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                parameter *= 0.9
    assert 0 < policy.step(rows)["clip_fraction"] < 1


def test_a_large_alpha_pulls_back_to_the_reference() -> None:
    policy, engine = policy_of(alpha=100.0)
    rows = policy.remembered(taken(), rows_at_once=4)
    before = policy.step(rows)["kl_nats"]
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad / parameter.grad.norm()
                parameter.grad = None
    assert policy.step(rows)["kl_nats"] < before
