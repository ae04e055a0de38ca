"""Puts DRaFT, ReFL and SEIKO together on one rank."""

from collections.abc import Mapping, Sequence

import torch

from learner.diffusion.chain import Chain
from learner.draft_settings import Draft
from learner.groups import GroupSource
from learner.journal import Journal
from learner.methods.alternation import Alternating
from learner.methods.draft_policy import DraftPolicy
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.parts import climbed_reward, policy_engine, scored_groups
from learner.model_settings import Model
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.views import policy_over
from learner.seat import Seat
from learner.settings import Learner
from learner.sqdf_settings import StateDraw
from learner.states import StateReplay, starting_part
from reward_servers.base import DifferentiableReward


def build_draft(
    settings: Draft,
    model: Model,
    learner: Learner,
    *,
    source: GroupSource,
    prompts: Sequence[str],
    rewards: Mapping[str, DifferentiableReward],
    seat: Seat,
) -> Alternating:
    """The method, ready for the trainer.

    Args:
        prompts: all of the run.
        rewards: by the names of `source.rewards`; none where a surrogate is climbed.
    """
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.of(model)
    base = pipeline.unet(model.attention).requires_grad_(False)
    engine = policy_engine(
        settings,
        learner,
        Denoiser.of(policy_over(base, model, seed=seat.seed), model),
        micro_batches=settings.micro_batches,
    )
    encode = pipeline.prompt_encoder(engine.device, prompts)
    labels = [f"{model.num_steps}step"]
    groups, journal = scored_groups(settings, source, steps=[0], seat=seat), Journal()
    reward, surrogate = climbed_reward(
        settings,
        learner,
        pipeline,
        base,
        encode,
        rewards,
        groups=groups,
        labels=labels,
        device=engine.device,
        journal=journal,
        seat=seat,
    )
    # After the surrogate has copied its blocks, which the engine places by itself.
    torch.nn.Module.to(base, engine.device)
    if learner.gradient_checkpointing:  # the gradient of several last steps passes it
        base.enable_gradient_checkpointing()
    policy = DraftPolicy(
        settings,
        engine,
        Chain(pipeline.schedule, model.num_steps),
        encode,
        Denoiser.of(base, model),
        reward,
        guidance_scale=model.guidance_scale,
        seat=seat,
    )
    draw = StateDraw(kept=1, fresh=settings.fresh)
    states = StateReplay(groups, draw, starting_part(settings, model.num_steps))
    return Alternating(
        settings,
        DrawnSteps(policy, lambda rng: states.draw(settings.policy_batch, rng, seat.share), seat),
        groups=groups,
        labels=labels,
        policy_engine=engine,
        surrogate=surrogate,
        journal=journal,
        seat=seat,
    )
