"""Puts SQDF together on one rank: one base, three networks over it, engines, what connects them."""

import copy
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from learner.groups import GroupSource, ScoredGroups
from learner.methods.alternation import Alternating
from learner.methods.engines import policy_engine, surrogate_engine
from learner.methods.sqdf import Chain
from learner.methods.sqdf_policy import SqdfPolicy
from learner.methods.sqdf_steps import SqdfSteps, surrogate_reward
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.trainable import make_policy_trainable
from learner.policy.views import shared_view, with_lora
from learner.seat import Seat
from learner.settings import Learner, Model, Sqdf
from learner.states import StateReplay
from learner.surrogate_training import SurrogateTrainer


def build_sqdf(
    settings: Sqdf, model: Model, learner: Learner, *, source: GroupSource, seat: Seat
) -> Alternating:
    """The method, ready for the trainer."""
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.locate(model.path)
    base = pipeline.unet(model.attention).requires_grad_(False)
    consistency = with_lora(base, Path(settings.clean.lora)) if settings.clean.lora else None
    encode = pipeline.prompt_encoder()
    denoiser = Denoiser(_policy(base, model, seat.seed))
    policy = policy_engine(settings, learner, denoiser)
    surrogate = surrogate_engine(settings, learner, base, num_steps=1, seed=seat.seed)
    for network in (base, consistency):
        if network is not None:
            torch.nn.Module.to(network, policy.device)
    groups = ScoredGroups(
        source,
        steps=(0,),
        admits=seat.is_first,
        ahead=source.max_staleness * settings.groups_per_cycle,
        num_tickets=settings.pretrain.groups + settings.cycles * settings.groups_per_cycle,
    )
    steps = SqdfPolicy(
        settings,
        policy,
        Chain(pipeline.schedule, model.num_steps),
        encode,
        base,
        consistency,
        surrogate_reward(surrogate.module, settings.surrogate.pessimism),
        guidance_scale=model.guidance_scale,
        seat=seat,
    )
    states = StateReplay(groups, settings.states, num_steps=model.num_steps)
    return Alternating(
        settings,
        SqdfSteps(settings, steps, states, surrogate.module, seat),
        groups=groups,
        labels=[f"{model.num_steps}step"],
        policy_engine=policy,
        surrogate=SurrogateTrainer(settings.surrogate, surrogate, encode),
        surrogate_engine=surrogate,
        seat=seat,
    )


def _policy(base: UNet2DConditionModel, model: Model, seed: int) -> UNet2DConditionModel:
    """Over the base's tensors with an adapter; with tensors of its own where all are trained."""
    view = shared_view(base) if model.trainable == "lora" else copy.deepcopy(base)
    make_policy_trainable(view, model, seed=seed)
    return view
