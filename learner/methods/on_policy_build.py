"""Puts methods together on one rank that train on their own steps: DDPO, RLCM, PSO."""

from torch import Tensor

from learner.diffusion.chain import Chain
from learner.methods.alternation import Alternating
from learner.methods.on_policy import OnPolicySteps, every_step, steps_of_pairs
from learner.methods.on_policy_policy import AskEps
from learner.methods.parts import Given, parts_around, untouched
from learner.methods.ppo_policy import PpoPolicy
from learner.methods.pso_policy import PsoPolicy
from learner.policy.denoiser import Denoiser, Network, guidance_rows, guided_call
from learner.policy.text import Text
from learner.policy.views import policy_over
from learner.settings.model import Model
from learner.settings.on_policy import Ppo, Pso
from learner.transitions import KeptSteps, Renoised, trained_strata


def build_on_policy(settings: Ppo | Pso, given: Given) -> Alternating:
    """The method, ready for the trainer."""
    model, seat = given.model, given.seat
    pipeline, base = untouched(given)
    network = Denoiser.of(policy_over(base, model, seed=seat.seed), model)
    labels = [f"{model.num_steps}step"]
    parts = parts_around(network, settings, given, pipeline, steps=[0], labels=labels)
    reference = parts.placed(base)
    if not model.is_few_step:
        chain = Chain(pipeline.schedule, model.num_steps)
        steps = KeptSteps(trained_strata(settings, model.num_steps))
    else:
        chain = pipeline.few_step_chain(model.num_steps)
        steps = Renoised(
            chain,
            pipeline.latent_shape,
            settings.steps_trained(model.num_steps),
            shared_initial_noise=given.shared_initial_noise,
        )
    ask = ask_of(model, base.config["time_cond_proj_dim"])
    shared = parts.engine, chain, parts.encode, ask
    if isinstance(settings, Pso):
        policy, plan = PsoPolicy(settings, *shared, reference), steps_of_pairs(settings)
    else:
        held_to = reference if settings.alpha > 0 else None
        policy, plan = PpoPolicy(settings, *shared, held_to), every_step(settings)
    own = OnPolicySteps(settings, policy, steps, plan, parts.journal, seat)
    return parts.alternating(settings, own)


def ask_of(model: Model, guidance_dim: int | None) -> AskEps:
    """How samplers ask a model for its noise, and so how its own steps are told again.

    Args:
        guidance_dim: `time_cond_proj_dim` of a model of few steps; None: it takes no guidance.
    """
    if model.is_few_step:
        return _embedded(model.guidance_scale, guidance_dim)
    return _classifier_free(model.guidance_scale)


def _classifier_free(scale: float) -> AskEps:
    def ask(network: Network, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
        return guided_call(network, x, t_B, text, empty, scale)

    return ask


def _embedded(scale: float, dim: int | None) -> AskEps:
    """Of a model that takes its guidance as an input, or has it distilled in."""

    def ask(network: Network, x: Tensor, t_B: Tensor, text: Text, empty: Text) -> Tensor:
        return network(x, t_B, text, guidance_rows(scale, dim, len(x), x.device))

    return ask
