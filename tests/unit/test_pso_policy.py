"""PSO's policy step: what its pairs prefer, against the same maths on the bare networks."""

from typing import Any

import torch
from torch import Tensor

from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.schedule import NoiseSchedule
from learner.methods.pso_policy import PsoPolicy
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.policy.views import shared_view
from learner.settings.on_policy import Pso
from learner.transitions import Transitions
from tests.unit.learner_fakes import HandEngine, adapted, base, encode, gradients

CHAIN = ConsistencyChain(
    NoiseSchedule.from_config(
        {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ),
    2,
)


def pairs() -> Transitions:
    """Two prompts, the better ones first."""
    generator = torch.Generator().manual_seed(8)
    return Transitions(
        latents_BCHW=torch.randn(4, 4, 8, 8, generator=generator),
        step_B=torch.zeros(4, dtype=torch.long),
        noise_BCHW=torch.randn(4, 4, 8, 8, generator=generator),
        prompts=["a red circle", "a blue star"] * 2,
        advantage_B=torch.zeros(4),
        weight_B=torch.tensor([1.5, 0.5, 1.5, 0.5]),
    )


def plain(network: Any, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
    return network(x, t_B, text)


def policy_of(unet: Any, denoiser: Denoiser, **settings: Any) -> tuple[PsoPolicy, HandEngine]:
    engine = HandEngine(denoiser)
    policy = PsoPolicy(
        Pso.model_validate({"policy_batch": 2, **settings}),
        engine,  # pyright: ignore[reportArgumentType]
        CHAIN,
        encode,
        plain,
        Denoiser(shared_view(unet)),
    )
    return policy, engine


def test_the_gradient_is_that_of_the_preference_of_log_probabilities() -> None:
    """Of actions that another version took than the one that is improved."""
    unet = base()
    old, now, rows = adapted(unet, 0.01), adapted(unet, 0.02), pairs()
    remembered = policy_of(unet, old)[0].remembered(rows, rows_at_once=4)
    policy, engine = policy_of(unet, now, ratio_clip=0.9, micro_batches=2)
    assert policy.step(remembered)["clip_fraction"] == 0
    text, (t_B, _) = encode(list(rows.prompts)), CHAIN.times(rows.step_B)

    def log_prob(network: Denoiser) -> Tensor:
        mean, std = CHAIN.moments(
            rows.latents_BCHW, network(rows.latents_BCHW, t_B, text), rows.step_B
        )
        gaussian = torch.distributions.Normal(mean, std.expand_as(mean))
        return gaussian.log_prob(action).mean(dim=(1, 2, 3))

    with torch.no_grad():
        eps = old(rows.latents_BCHW, t_B, text)
        mean, std = CHAIN.moments(rows.latents_BCHW, eps, rows.step_B)
        action = mean + std * rows.noise_BCHW
        reference_B = log_prob(Denoiser(unet))
    rho_B = log_prob(now) - reference_B
    preferred_B = torch.nn.functional.logsigmoid(50.0 * (rho_B[:2] - rho_B[2:]))
    loss = -(rows.weight_B[:2] * preferred_B).mean()
    trained = [p for p in now.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(loss, trained)
    for mine, other in zip(gradients(engine), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-3, atol=1e-5)


def test_an_untouched_policy_prefers_nothing_yet_and_learns_to() -> None:
    unet = base()
    view = shared_view(unet)
    make_trainable(view, "lora", rank=2, alpha=2, seed=1)
    policy, engine = policy_of(unet, Denoiser(view))
    metrics = policy.step(policy.remembered(pairs(), rows_at_once=4))
    assert abs(metrics["pso_loss"] - float(torch.log(torch.tensor(2.0)))) < 1e-6
    assert metrics["clip_fraction"] == 0
    assert any(bool(g.abs().sum() > 0) for g in gradients(engine))
