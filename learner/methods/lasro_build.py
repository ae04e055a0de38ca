"""Puts LaSRO together on one rank: models from the pipelines, engines, and what connects them."""

from collections.abc import Sequence

import torch

from learner.groups import GroupSource
from learner.methods.alternation import Alternating
from learner.methods.lasro_policy import LasroPolicy, rewarded_steps
from learner.methods.lasro_steps import LasroSteps
from learner.methods.parts import Given, Surrogacy, parts_around
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.trainable import trainable_unet
from learner.seat import Seat
from learner.settings.lasro import Lasro
from learner.settings.learner import Learner
from learner.settings.model import Model


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
    given = Given(model, learner, source, prompts, seat)
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.of(model)
    teacher = PipelineFolder.teacher_of(model).unet(model.attention)
    teacher.requires_grad_(False)
    steps = rewarded_steps(settings, model)
    denoiser = Denoiser.of(trainable_unet(pipeline, model, seed=seat.seed), model)
    labels = [f"{step + 1}step" for step in steps]
    # Only what is rewarded is scored.
    scored = range(len(steps))
    parts = parts_around(denoiser, settings, given, pipeline, steps=scored, labels=labels)
    surrogate = Surrogacy(settings, parts, teacher)
    anchored = settings.anchor.data != "none"
    climb = LasroPolicy(
        settings,
        model,
        parts.engine,
        pipeline.few_step_chain(model.num_steps),
        pipeline.latent_shape,
        parts.encode,
        parts.placed(teacher) if anchored else None,
        surrogate.climb,
        seat,
    )
    return parts.alternating(settings, LasroSteps(settings, climb, prompts), surrogate.steps)
