"""Puts methods together on one rank that train on their own steps: DDPO, RLCM, PSO."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.diffusion.chain import Chain
from learner.groups import GroupSource
from learner.journal import Journal
from learner.methods.alternation import Alternating
from learner.methods.own_steps import OwnSteps, every_step, steps_of_pairs
from learner.methods.own_steps_policy import AskEps
from learner.methods.parts import policy_engine, scored_groups
from learner.methods.ppo_policy import PpoPolicy
from learner.methods.pso_policy import PsoPolicy
from learner.model_settings import Model
from learner.on_policy_settings import Ppo, Pso
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser, Network, guidance_rows, guided_call
from learner.policy.text import Text
from learner.policy.views import policy_over
from learner.seat import Seat
from learner.settings import Learner
from learner.transitions import KeptSteps, Renoised, trained_strata


def build_own_steps(
    settings: Ppo | Pso,
    model: Model,
    learner: Learner,
    *,
    source: GroupSource,
    prompts: Sequence[str],
    shared_initial_noise: bool,
    seat: Seat,
) -> Alternating:
    """The method, ready for the trainer.

    Args:
        prompts: all of the run.
        shared_initial_noise: whether samplers start all members of a group from one noise.
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
    torch.nn.Module.to(base, engine.device)
    if not model.is_few_step:
        chain = Chain(pipeline.schedule, model.num_steps)
        steps = KeptSteps(trained_strata(settings, model.num_steps))
        ask = _classifier_free(model.guidance_scale)
    else:
        chain = pipeline.few_step_chain(model.num_steps)
        steps = Renoised(
            chain,
            pipeline.latent_shape,
            settings.steps_trained(model.num_steps),
            shared_initial_noise=shared_initial_noise,
        )
        ask = _embedded(model.guidance_scale, base.config["time_cond_proj_dim"])
    journal = Journal()
    parts = engine, chain, pipeline.prompt_encoder(engine.device, prompts), ask
    untouched = Denoiser.of(base, model)
    if isinstance(settings, Pso):
        policy, plan = PsoPolicy(settings, *parts, untouched), steps_of_pairs(settings)
    else:
        reference = untouched if settings.alpha > 0 else None
        policy, plan = PpoPolicy(settings, *parts, reference), every_step(settings)
    return Alternating(
        settings,
        OwnSteps(settings, policy, steps, plan, journal, seat),
        groups=scored_groups(settings, source, steps=[0], seat=seat),
        labels=[f"{model.num_steps}step"],
        policy_engine=engine,
        surrogate=None,
        journal=journal,
        seat=seat,
    )


def _classifier_free(scale: float) -> AskEps:
    def ask(network: Network, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
        return guided_call(network, x, t_B, text, empty, scale)

    return ask


def _embedded(scale: float, dim: int | None) -> AskEps:
    """Of a model that takes its guidance as an input, or has it distilled in."""

    def ask(network: Network, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
        return network(x, t_B, text, guidance_rows(scale, dim, len(x), x.device))

    return ask
