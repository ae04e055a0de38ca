"""Puts LaSRO together on one rank: models from the pipelines, engines, and what connects them."""

import torch

from learner.methods.alternation import Alternating
from learner.methods.lasro_policy import LasroPolicy, rewarded_steps
from learner.methods.lasro_steps import LasroSteps
from learner.methods.parts import Given, Surrogacy, parts_around
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.trainable import trainable_unet
from learner.settings.lasro import Lasro


def build_lasro(settings: Lasro, given: Given) -> Alternating:
    """The method, ready for the trainer."""
    model, seat = given.model, given.seat
    torch.set_num_threads(given.learner.threads)
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
    return parts.alternating(settings, LasroSteps(settings, climb, given.prompts), surrogate.steps)
