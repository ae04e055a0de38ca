"""Puts LaSRO together on one rank: models from the pipelines, engines, and what connects them."""

from collections.abc import Sequence

import torch

from learner.groups import GroupSource
from learner.journal import Journal
from learner.methods.alternation import Alternating
from learner.methods.lasro_policy import LasroPolicy, rewarded_steps
from learner.methods.lasro_steps import LasroSteps
from learner.methods.parts import Surrogacy, policy_engine, scored_groups
from learner.model_settings import Model
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.trainable import trainable_unet
from learner.seat import Seat
from learner.settings import Lasro, Learner


def build_lasro(
    settings: Lasro,
    model: Model,
    learner: Learner,
    *,
    source: GroupSource,
    prompts: Sequence[str],
    seat: Seat,
) -> Alternating:
    """The method, ready for the trainer.

    Args:
        prompts: all of the run.
    """
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.of(model)
    teacher = PipelineFolder.teacher_of(model).unet(model.attention)
    teacher.requires_grad_(False)
    steps = rewarded_steps(settings, model)
    denoiser = Denoiser.of(trainable_unet(pipeline, model, seed=seat.seed), model)
    policy = policy_engine(settings, learner, denoiser)
    encode = pipeline.prompt_encoder(policy.device, prompts)
    # Only what is rewarded is scored.
    groups = scored_groups(settings, source, steps=range(len(steps)), seat=seat)
    journal = Journal()
    labels = [f"{step + 1}step" for step in steps]
    surrogate = Surrogacy(
        settings,
        learner,
        teacher,
        encode,
        groups=groups,
        labels=labels,
        journal=journal,
        seat=seat,
    )
    anchored = settings.anchor.data != "none"
    if anchored:  # after the surrogate has copied its blocks, which the engine places by itself
        torch.nn.Module.to(teacher, policy.device)
    climb = LasroPolicy(
        settings,
        model,
        policy,
        pipeline.few_step_chain(model.num_steps),
        pipeline.latent_shape,
        encode,
        Denoiser.of(teacher, model) if anchored else None,
        surrogate.climb,
        seat,
    )
    return Alternating(
        settings,
        LasroSteps(settings, climb, prompts),
        groups=groups,
        labels=labels,
        policy_engine=policy,
        surrogate=surrogate.steps,
        journal=journal,
        seat=seat,
    )
