"""Puts GORS, GORS-LCM and Diffusion-DPO together on one rank."""

from collections.abc import Sequence

import torch

from learner.clean_latents import CleanLatents
from learner.groups import GroupSource
from learner.journal import Journal
from learner.likelihood_settings import Dpo, Gors
from learner.methods.alternation import Alternating
from learner.methods.drawn_steps import DrawnSteps
from learner.methods.likelihood_policy import DpoPolicy, GorsPolicy
from learner.methods.parts import policy_engine, scored_groups
from learner.model_settings import Model
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser, guidance_rows
from learner.policy.views import policy_over
from learner.seat import Seat
from learner.settings import Learner


def build_likelihood(
    settings: Gors | Dpo,
    model: Model,
    learner: Learner,
    *,
    source: GroupSource,
    prompts: Sequence[str],
    seat: Seat,
) -> Alternating:
    """The method, ready for the trainer. Of a few-step model GORS distils from `model.teacher`.

    Args:
        prompts: all of the run.
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
    groups, journal = scored_groups(settings, source, steps=[0], seat=seat), Journal()
    latents = CleanLatents(groups, fresh=settings.fresh)
    batch, share = settings.policy_batch, seat.share
    parts = engine, pipeline.schedule, pipeline.prompt_encoder(engine.device, prompts)
    if isinstance(settings, Dpo):
        torch.nn.Module.to(base, engine.device)
        policy = DpoPolicy(settings, *parts, Denoiser.of(base, model), seat=seat)
        steps = DrawnSteps(policy, lambda rng: latents.pairs(batch, rng, share), seat)
    else:
        teacher, dim = None, base.config["time_cond_proj_dim"]
        if model.is_few_step:
            assert model.teacher is not None
            unet = PipelineFolder.teacher_of(model).unet(model.attention)
            torch.nn.Module.to(unet.requires_grad_(False), engine.device)
            teacher = Denoiser.of(unet, model)
        policy = GorsPolicy(
            settings,
            *parts,
            teacher,
            lambda rows: guidance_rows(model.guidance_scale, dim, rows, engine.device),
            guidance_scale=model.guidance_scale,
            seat=seat,
        )
        steps = DrawnSteps(
            policy,
            lambda rng: latents.good(
                batch,
                rng,
                share,
                threshold=settings.threshold,
                kept_share=settings.kept_share,
            ),
            seat,
        )
    return Alternating(
        settings,
        steps,
        groups=groups,
        labels=[f"{model.num_steps}step"],
        policy_engine=engine,
        surrogate=None,
        journal=journal,
        seat=seat,
    )
