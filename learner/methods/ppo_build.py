"""Puts policy gradients together on one rank: DDPO and PPO with a KL on many steps, RLCM on few."""

import torch
from torch import Tensor

from learner.diffusion.chain import Chain, ConsistencyChain
from learner.diffusion.consistency import guidance_embedding
from learner.groups import GroupSource
from learner.methods.alternation import Alternating
from learner.methods.parts import policy_engine, scored_groups
from learner.methods.ppo_policy import AskEps, Network, PpoPolicy
from learner.methods.ppo_steps import PpoSteps
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser, guided_call
from learner.policy.text import Text
from learner.policy.views import policy_over
from learner.ppo_settings import Ppo
from learner.seat import Seat
from learner.settings import Learner, Model
from learner.trainer import Journal
from learner.transitions import KeptSteps, Renoised, trained_strata


def build_ppo(
    settings: Ppo,
    model: Model,
    learner: Learner,
    *,
    source: GroupSource,
    shared_initial_noise: bool,
    seat: Seat,
) -> Alternating:
    """The method, ready for the trainer.

    Args:
        shared_initial_noise: whether samplers start all members of a group from one noise.
    """
    torch.set_num_threads(learner.threads)
    pipeline = PipelineFolder.locate(model.path)
    base = pipeline.unet(model.attention).requires_grad_(False)
    engine = policy_engine(
        settings,
        learner,
        Denoiser(policy_over(base, model, seed=seat.seed)),
        micro_batches=settings.micro_batches,
    )
    torch.nn.Module.to(base, engine.device)
    if model.num_steps > 8:
        chain = Chain(pipeline.schedule, model.num_steps)
        steps = KeptSteps(trained_strata(settings, model.num_steps))
        ask = _classifier_free(model.guidance_scale)
    else:
        chain = ConsistencyChain(pipeline.schedule, model.num_steps)
        steps = Renoised(
            chain,
            pipeline.latent_shape,
            settings.steps_trained(model.num_steps),
            shared_initial_noise=shared_initial_noise,
        )
        ask = _embedded(model.guidance_scale, base.config["time_cond_proj_dim"])
    journal = Journal()
    policy = PpoPolicy(
        settings,
        engine,
        chain,
        pipeline.prompt_encoder(),
        ask,
        Denoiser(base) if settings.alpha > 0 else None,
    )
    return Alternating(
        settings,
        PpoSteps(settings, policy, steps, journal, seat),
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
        guidance = None
        if dim is not None:
            guidance = guidance_embedding(torch.full((len(x),), scale - 1.0, device=x.device), dim)
        return network(x, t_B, text, guidance)

    return ask
