"""Every method climbs what it says: a small step down its gradient raises that.

What is said is told here from the bare networks, and by no loss of any method.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.clean_latents import CleanBatch, PairBatch
from learner.diffusion.chain import Chain
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.schedule import NoiseSchedule, add_noise
from learner.methods.draft_policy import DraftBatch, DraftPolicy
from learner.methods.lasro_policy import LasroPolicy
from learner.methods.likelihood_policy import DpoPolicy, GorsPolicy
from learner.methods.ppo_policy import PpoPolicy
from learner.methods.pso_policy import PsoPolicy
from learner.methods.sqdf_policy import SqdfPolicy
from learner.methods.updates import step_generator
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.policy.views import shared_view
from learner.seat import Seat
from learner.settings.draft import Draft
from learner.settings.lasro import Lasro
from learner.settings.likelihood import Dpo, Gors
from learner.settings.model import Model
from learner.settings.on_policy import Ppo, Pso
from learner.settings.sqdf import Sqdf
from learner.states import StateBatch
from learner.transitions import Transitions
from tests.unit.learner_fakes import HandEngine, adapted, base, encode, gradients

SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
MANY, FEW = Chain(SCHEDULE), ConsistencyChain(SCHEDULE, 2)
PROMPTS, SEAT = ["a red circle", "a blue star"] * 2, Seat(7)
ADVANTAGES = torch.tensor([1.0, 0.5, -1.0, -0.5])
Climb = tuple[Callable[[], object], Callable[[Denoiser], Tensor]]
"""A step of a method, and what it is to raise."""


def noises(seed: int) -> Tensor:
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def brightness(x: Tensor, *_: object) -> Tensor:
    return x.mean(dim=(1, 2, 3))


def plain(network: Any, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
    return network(x, t_B, text)


def lasro(engine: Any, frozen: Denoiser) -> Climb:
    settings = Lasro.model_validate(
        {"policy_batch": 4, "reward_steps": "last", "anchor": {"data": "none"}}
    )
    shape, model = (4, 8, 8), Model(path="unused")
    policy = LasroPolicy(
        settings,
        model,
        engine,
        FEW,
        shape,
        encode,
        None,
        brightness,
        SEAT,  # pyright: ignore
    )
    generator = step_generator(7, 0)
    prompts = [PROMPTS[int(i)] for i in torch.randint(4, (4,), generator=generator)]
    first, second = torch.randn(2, 4, *shape, generator=generator)

    def said(network: Denoiser) -> Tensor:
        x, text = FEW.initial(first), encode(prompts)
        t_B, last_B = (torch.full((4,), t) for t in FEW.timesteps)
        x = FEW.noised(x, FEW.clean(x, network(x, t_B, text), t_B), 0, second)
        return brightness(FEW.clean(x, network(x, last_B, text), last_B)).mean()

    return lambda: policy.step(PROMPTS, None), said


def sqdf(engine: Any, frozen: Denoiser) -> Climb:
    settings = Sqdf.model_validate({"clean": {"by": "tweedie"}, "policy_batch": 4, "alpha": 0.0})
    guided = {"guidance_scale": 1.0, "seat": SEAT}
    policy = SqdfPolicy(settings, engine, MANY, encode, frozen, None, brightness, **guided)
    last = StateBatch(noises(1), torch.full((4,), 49), PROMPTS)
    return lambda: policy.step(last), after_the_last_step


def after_the_last_step(network: Denoiser) -> Tensor:
    """Mean brightness where the last step of a long chain leads."""
    x, step_B = noises(1), torch.full((4,), 49)
    eps = network(x, MANY.times(step_B)[0], encode(PROMPTS))
    return brightness(MANY.moments(x, eps, step_B)[0]).mean()


def draft(engine: Any, frozen: Denoiser) -> Climb:
    settings = Draft.model_validate({"policy_batch": 4, "last_steps": 1, "alpha": 0.0})
    guided: Any = {"guidance_scale": 1.0, "seat": SEAT}
    policy = DraftPolicy(settings, engine, MANY, encode, frozen, brightness, **guided)
    last = StateBatch(noises(1), torch.full((4,), 49), PROMPTS)
    return lambda: policy.step(DraftBatch(last)), after_the_last_step


def actions() -> Transitions:
    return Transitions(
        noises(1), torch.zeros(4).long(), noises(2), PROMPTS, ADVANTAGES, torch.ones(4)
    )


def log_prob(engine: Any) -> Callable[[Denoiser], Tensor]:
    """Of the actions that the engine's network took, mean over the latent, [B]."""
    taken, text = actions(), encode(PROMPTS)
    x, (t_B, _) = taken.latents_BCHW, FEW.times(taken.step_B)

    def density(network: Denoiser) -> torch.distributions.Normal:
        mean, std = FEW.moments(x, network(x, t_B, text), taken.step_B)
        return torch.distributions.Normal(mean, std.expand_as(mean))

    with torch.no_grad():
        then = density(engine.module)
        action = then.mean + then.stddev * taken.noise_BCHW
    return lambda network: density(network).log_prob(action).mean(dim=(1, 2, 3))


def ppo(engine: Any, frozen: Denoiser) -> Climb:
    policy = PpoPolicy(Ppo(policy_batch=4), engine, FEW, encode, plain, None)
    taken, log_prob_of = policy.remembered(actions(), rows_at_once=4), log_prob(engine)
    return lambda: policy.step(taken), lambda network: (ADVANTAGES * log_prob_of(network)).mean()


def pso(engine: Any, frozen: Denoiser) -> Climb:
    policy = PsoPolicy(Pso(policy_batch=2, ratio_clip=0.9), engine, FEW, encode, plain, frozen)
    taken, log_prob_of = policy.remembered(actions(), rows_at_once=4), log_prob(engine)

    def said(network: Denoiser) -> Tensor:
        better_P, worse_P = log_prob_of(network).chunk(2)
        return (better_P - worse_P).mean()

    return lambda: policy.step(taken), said


def rightness(network: Denoiser, latents: Tensor) -> Tensor:
    """How near it is to the noise of a first step, [B]."""
    generator = step_generator(7, 0)
    noise = torch.randn(4, 4, 8, 8, generator=generator)
    t_B = torch.randint(1000, (4,), generator=generator)
    told = network(add_noise(latents, noise, t_B, SCHEDULE), t_B, encode(PROMPTS))
    return -(told - noise).square().mean(dim=(1, 2, 3))


def gors(engine: Any, frozen: Denoiser) -> Climb:
    rewards = torch.tensor([1.0, 0.5, 2.0, 0.1])
    told: Any = {"guidance_scale": 1.0, "seat": SEAT}
    policy = GorsPolicy(
        Gors(policy_batch=4), engine, SCHEDULE, encode, None, lambda rows: None, **told
    )
    good = CleanBatch(noises(1), PROMPTS, rewards)
    return (
        lambda: policy.step(good),
        lambda network: (rewards * rightness(network, noises(1))).mean(),
    )


def dpo(engine: Any, frozen: Denoiser) -> Climb:
    policy = DpoPolicy(Dpo(policy_batch=4, beta=1.0), engine, SCHEDULE, encode, frozen, seat=SEAT)
    better, worse = (CleanBatch(noises(seed), PROMPTS, torch.zeros(4)) for seed in (1, 2))

    def said(network: Denoiser) -> Tensor:
        return (rightness(network, noises(1)) - rightness(network, noises(2))).mean()

    return lambda: policy.step(PairBatch(better, worse)), said


@pytest.mark.parametrize("method", [lasro, sqdf, draft, ppo, pso, gors, dpo])
def test_a_small_step_raises_what_a_method_says_that_it_climbs(
    method: Callable[[Any, Denoiser], Climb],
) -> None:
    unet = base()
    network = adapted(unet)
    engine = HandEngine(network)
    step, said = method(engine, Denoiser(shared_view(unet)))
    with torch.no_grad():
        before = said(network)
    step()
    down = gradients(engine)
    length = torch.stack([part.norm() for part in down]).norm()
    trained = [p for p in network.parameters() if p.grad is not None and p.requires_grad]
    with torch.no_grad():
        for parameter, part in zip(trained, down, strict=True):
            parameter -= 1e-3 * part / length
        assert said(network) > before
