"""Puts GORS, GORS-LCM and Diffusion-DPO together on one rank."""

from typing import Any

from learner.clean_latents import CleanLatents
from learner.methods.alternation import Alternating
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.likelihood_policy import DpoPolicy, GorsPolicy
from learner.methods.parts import Given, parts_around, untouched
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.views import policy_over
from learner.settings.likelihood import Dpo, Gors


def build_likelihood(settings: Gors | Dpo, given: Given) -> Alternating:
    """The method, ready for the trainer. Of a few-step model GORS distils from `model.teacher`."""
    model, seat = given.model, given.seat
    pipeline, base = untouched(given)
    network = Denoiser.of(policy_over(base, model, seed=seat.seed), model)
    labels = [f"{model.num_steps}step"]
    parts = parts_around(network, settings, given, pipeline, steps=[0], labels=labels)
    latents = CleanLatents(parts.groups, fresh=settings.fresh)
    batch, share = settings.policy_batch, seat.share
    shared = parts.engine, pipeline.schedule, parts.encode
    if isinstance(settings, Dpo):
        policy = DpoPolicy(settings, *shared, parts.placed(base), seat=seat)
        steps = DrawnSteps(
            policy,
            lambda rng: latents.pairs(batch, rng, share),
            seat,
            check=latents.pair_rows,
        )
    else:
        teacher, dim = None, base.config["time_cond_proj_dim"]
        if model.is_few_step:
            assert model.teacher is not None
            unet = PipelineFolder.teacher_of(model).unet(model.attention)
            teacher = parts.placed(unet.requires_grad_(False))
        policy = GorsPolicy(
            settings,
            *shared,
            teacher,
            lambda rows: guidance_rows(model.guidance_scale, dim, rows, parts.engine.device),
            guidance_scale=model.guidance_scale,
            seat=seat,
        )
        bar: Any = {"threshold": settings.threshold, "kept_share": settings.kept_share}
        steps = DrawnSteps(
            policy,
            lambda rng: latents.good(batch, rng, share, **bar),
            seat,
            check=lambda: latents.good_rows(**bar),
        )
    return parts.alternating(settings, steps)
