"""Puts LaSRO together on one rank: models from the pipelines, engines, and what connects them."""

import threading
from collections.abc import Mapping, Sequence

import torch

from buffer.replay import Replay
from learner.engine import Engine
from learner.groups import ScoredGroups
from learner.methods.lasro_policy import Denoiser, LasroPolicy, rewarded_steps
from learner.methods.lasro_recipe import LasroMethod
from learner.policy.components import PipelineFolder
from learner.policy.trainable import trainable_unet
from learner.settings import Lasro, Learner, Model
from learner.surrogate import new_surrogate
from learner.surrogate_training import SurrogateTrainer


def build_lasro(
    settings: Lasro,
    model: Model,
    learner: Learner,
    *,
    replay: Replay,
    prompts: Sequence[str],
    rewards: Mapping[str, float],
    group_size: int,
    max_open: int,
    max_staleness: int = 0,
    capacity_groups: int,
    stall_s: float,
    seed: int,
    rank: int,
    stopping: threading.Event,
) -> LasroMethod:
    """The method, ready for the trainer.

    Args:
        rewards: weight of every reward by name.
        max_open: groups that may be under way at once.
        max_staleness: cycles whose groups may be issued before their turn.
        stall_s: deadline of every wait.
    """
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.locate(model.path)
    teacher = PipelineFolder.locate(model.teacher or model.path).unet(model.attention)
    teacher.requires_grad_(False)
    encode = pipeline.prompt_encoder()
    steps = rewarded_steps(settings, model)

    denoiser = Denoiser(trainable_unet(pipeline, model, seed=seed))
    policy_engine = Engine(
        denoiser,
        [parameter for parameter in denoiser.parameters() if parameter.requires_grad],
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        zero_stage=learner.zero_stage,
        grad_clip=learner.grad_clip,
        rows_per_rank=settings.policy_batch // learner.ranks,
    )
    surrogate = new_surrogate(
        settings.surrogate.backbone,
        teacher,
        num_steps=len(steps),
        heads=settings.surrogate.heads,
        timestep=settings.surrogate.timestep,
        precision=settings.surrogate.precision,
        seed=seed,
    )
    surrogate_engine = Engine(
        surrogate,
        surrogate.parameters(),
        learning_rate=settings.surrogate.learning_rate,
        weight_decay=settings.surrogate.weight_decay,
        zero_stage=learner.zero_stage,
        grad_clip=learner.grad_clip,
        rows_per_rank=settings.surrogate.batch_groups // learner.ranks,
    )
    # After the surrogate has copied its blocks, which the engine places by itself.
    torch.nn.Module.to(teacher, policy_engine.device)
    groups = ScoredGroups(
        replay,
        rewards=rewards,
        group_size=group_size,
        steps=steps,
        max_open=max_open if rank == 0 else None,
        ahead=max_staleness * settings.groups_per_cycle,
        num_tickets=settings.pretrain.groups + settings.cycles * settings.groups_per_cycle,
        stall_s=stall_s,
        stopping=stopping,
    )
    return LasroMethod(
        settings,
        groups=groups,
        policy=LasroPolicy(
            settings,
            model,
            policy_engine,
            pipeline.schedule,
            pipeline.latent_shape,
            encode,
            None if settings.anchor.data == "none" else teacher,
            surrogate_engine.module,
            seed=seed,
            rank=rank,
            ranks=learner.ranks,
        ),
        policy_engine=policy_engine,
        surrogate=SurrogateTrainer(settings.surrogate, surrogate_engine, encode),
        surrogate_engine=surrogate_engine,
        prompts=prompts,
        capacity_groups=capacity_groups,
        seed=seed,
        rank=rank,
        ranks=learner.ranks,
    )
