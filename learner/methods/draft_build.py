"""Puts DRaFT, ReFL and SEIKO together on one rank."""

from numpy.random import Generator

from learner.diffusion.chain import Chain
from learner.methods.alternation import Alternating
from learner.methods.draft_policy import DraftBatch, DraftPolicy
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.parts import Given, climbed_reward, parts_around, untouched
from learner.policy.denoiser import Denoiser
from learner.policy.views import policy_over
from learner.settings.draft import Draft
from learner.settings.sqdf import StateDraw
from learner.states import StateReplay, starting_parts


def build_draft(settings: Draft, given: Given) -> Alternating:
    """The method, ready for the trainer."""
    model, seat = given.model, given.seat
    pipeline, base = untouched(given)
    network = Denoiser.of(policy_over(base, model, seed=seat.seed), model)
    labels = [f"{model.num_steps}step"]
    parts = parts_around(network, settings, given, pipeline, steps=[0], labels=labels)
    reward, surrogate = climbed_reward(settings, parts, base)
    policy = DraftPolicy(
        settings,
        parts.engine,
        Chain(pipeline.schedule, model.num_steps),
        parts.encode,
        parts.placed(base, differentiated=True),  # by the gradient of several last steps
        reward,
        guidance_scale=model.guidance_scale,
        seat=seat,
    )
    draw = StateDraw(kept=1, fresh=settings.fresh)
    states = StateReplay(parts.groups, draw, starting_parts(settings, model.num_steps))

    def drawn(rng: Generator) -> DraftBatch:
        *beside, start = states.draw_each(settings.policy_batch, rng, seat.share)
        return DraftBatch(start, beside[0] if beside else None)

    steps = DrawnSteps(policy, drawn, seat, check=states.check)
    return parts.alternating(settings, steps, surrogate)
