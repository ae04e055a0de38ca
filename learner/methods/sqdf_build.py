"""Puts SQDF together on one rank: one base, three networks over it, engines, what connects them."""

from collections.abc import Mapping, Sequence

import torch

from learner.diffusion.chain import Chain
from learner.groups import GroupSource
from learner.journal import Journal
from learner.methods.alternation import Alternating
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.parts import climbed_reward, policy_engine, scored_groups
from learner.methods.sqdf_policy import SqdfPolicy
from learner.model_settings import Model
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.views import policy_over, with_lora
from learner.seat import Seat
from learner.settings import Learner
from learner.sqdf_settings import Sqdf
from learner.states import StateReplay, strata_of
from reward_servers.base import DifferentiableReward


def build_sqdf(
    settings: Sqdf,
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
    consistency = with_lora(base, settings.clean.lora) if settings.clean.lora else None
    engine = policy_engine(
        settings,
        learner,
        Denoiser.of(policy_over(base, model, seed=seat.seed), model),
        micro_batches=settings.micro_batches,
    )
    encode = pipeline.prompt_encoder(engine.device, prompts)
    # The end of a trajectory is scored first, and what is told of its states after it.
    told = settings.states.kept if settings.states.score_clean else 0
    ends = (*range(1, told + 1), 0)
    labels = [*(f"told{part}" for part in range(1, told + 1)), f"{model.num_steps}step"]
    groups, journal = scored_groups(settings, source, steps=ends, seat=seat), Journal()
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
    for network in (base, consistency):
        if network is not None:
            torch.nn.Module.to(network, engine.device)
            if learner.gradient_checkpointing:
                network.enable_gradient_checkpointing()
    policy = SqdfPolicy(
        settings,
        engine,
        Chain(pipeline.schedule, model.num_steps),
        encode,
        Denoiser.of(base, model),
        Denoiser.of(consistency, model) if consistency else None,
        reward,
        guidance_scale=model.guidance_scale,
        seat=seat,
    )
    states = StateReplay(groups, settings.states, strata_of(settings, model.num_steps))
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
