"""Puts LaSRO together on one rank: models from the pipelines, engines, and what connects them."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel

from learner.engine import Engine
from learner.groups import GroupSource, ScoredGroups
from learner.methods.alternation import Alternating
from learner.methods.lasro_policy import Denoiser, LasroPolicy, rewarded_steps
from learner.methods.lasro_steps import LasroSteps
from learner.policy.components import PipelineFolder
from learner.policy.trainable import trainable_unet
from learner.seat import Seat
from learner.settings import Lasro, Learner, Model
from learner.surrogate import new_surrogate
from learner.surrogate_training import SurrogateTrainer


def build_lasro(
    settings: Lasro,
    model: Model,
    learner: Learner,
    *,
    source: GroupSource,
    prompts: Sequence[str],
    seat: Seat,
) -> Alternating:
    """The method, ready for the trainer."""
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.locate(model.path)
    teacher = PipelineFolder.locate(model.teacher or model.path).unet(model.attention)
    teacher.requires_grad_(False)
    encode = pipeline.prompt_encoder()
    policy_engine = _policy_engine(settings, model, learner, pipeline, seat.seed)
    surrogate_engine = _surrogate_engine(settings, model, learner, teacher, seat.seed)
    # After the surrogate has copied its blocks, which the engine places by itself.
    torch.nn.Module.to(teacher, policy_engine.device)
    steps = rewarded_steps(settings, model)
    groups = ScoredGroups(
        source,
        steps=steps,
        admits=seat.is_first,
        ahead=source.max_staleness * settings.groups_per_cycle,
        num_tickets=settings.pretrain.groups + settings.cycles * settings.groups_per_cycle,
    )
    policy = LasroPolicy(
        settings,
        model,
        policy_engine,
        pipeline.schedule,
        pipeline.latent_shape,
        encode,
        None if settings.anchor.data == "none" else teacher,
        surrogate_engine.module,
        seat,
    )
    return Alternating(
        settings,
        LasroSteps(settings, policy, prompts),
        groups=groups,
        labels=[f"{step + 1}step" for step in steps],
        policy_engine=policy_engine,
        surrogate=SurrogateTrainer(settings.surrogate, surrogate_engine, encode),
        surrogate_engine=surrogate_engine,
        seat=seat,
    )


def _policy_engine(
    settings: Lasro, model: Model, learner: Learner, pipeline: PipelineFolder, seed: int
) -> Engine:
    denoiser = Denoiser(trainable_unet(pipeline, model, seed=seed))
    return Engine(
        denoiser,
        [parameter for parameter in denoiser.parameters() if parameter.requires_grad],
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        zero_stage=learner.zero_stage,
        grad_clip=learner.grad_clip,
        rows_per_rank=settings.policy_batch // learner.ranks,
    )


def _surrogate_engine(
    settings: Lasro, model: Model, learner: Learner, teacher: UNet2DConditionModel, seed: int
) -> Engine:
    options = settings.surrogate
    surrogate = new_surrogate(
        options.backbone,
        teacher,
        num_steps=len(rewarded_steps(settings, model)),
        heads=options.heads,
        timestep=options.timestep,
        precision=options.precision,
        seed=seed,
    )
    return Engine(
        surrogate,
        surrogate.parameters(),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        zero_stage=learner.zero_stage,
        grad_clip=learner.grad_clip,
        rows_per_rank=options.batch_groups // learner.ranks,
    )
