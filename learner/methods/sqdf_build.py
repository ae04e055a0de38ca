"""Puts SQDF together on one rank: one base, three networks over it, engines, what connects them."""

from learner.diffusion.chain import Chain
from learner.methods.alternation import Alternating
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.parts import Given, climbed_reward, parts_around, untouched
from learner.methods.sqdf_policy import SqdfPolicy
from learner.policy.denoiser import Denoiser
from learner.policy.views import policy_over, with_lora
from learner.settings.sqdf import Sqdf
from learner.states import StateReplay, strata_of


def build_sqdf(settings: Sqdf, given: Given) -> Alternating:
    """The method, ready for the trainer."""
    model, seat = given.model, given.seat
    pipeline, base = untouched(given)
    consistency = with_lora(base, settings.clean.lora) if settings.clean.lora else None
    network = Denoiser.of(policy_over(base, model, seed=seat.seed), model)
    # The end of a trajectory is scored first, and what is told of its states after it.
    told = settings.clean_states
    ends = (*range(1, told + 1), 0)
    labels = [*(f"told{part}" for part in range(1, told + 1)), f"{model.num_steps}step"]
    parts = parts_around(network, settings, given, pipeline, steps=ends, labels=labels)
    reward, surrogate = climbed_reward(settings, parts, base)
    policy = SqdfPolicy(
        settings,
        parts.engine,
        Chain(pipeline.schedule, model.num_steps),
        parts.encode,
        parts.placed(base, differentiated=True),
        parts.placed(consistency, differentiated=True) if consistency else None,
        reward,
        guidance_scale=model.guidance_scale,
        seat=seat,
    )
    states = StateReplay(parts.groups, settings.states, strata_of(settings, model.num_steps))
    steps = DrawnSteps(
        policy,
        lambda rng: states.draw(settings.policy_batch, rng, seat.share),
        seat,
        check=states.check,
    )
    return parts.alternating(settings, steps, surrogate)
