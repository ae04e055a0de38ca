"""Engines of policy and surrogate, as every alternating method has them."""

from diffusers import UNet2DConditionModel

from learner.engine import Engine
from learner.policy.denoiser import Denoiser
from learner.settings import Alternation, Learner
from learner.surrogate import new_surrogate


def policy_engine(settings: Alternation, learner: Learner, denoiser: Denoiser) -> Engine:
    """The policy under its engine."""
    return Engine(
        denoiser,
        [parameter for parameter in denoiser.parameters() if parameter.requires_grad],
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        zero_stage=learner.zero_stage,
        grad_clip=learner.grad_clip,
        rows_per_rank=settings.policy_batch // learner.ranks,
    )


def surrogate_engine(
    settings: Alternation,
    learner: Learner,
    unet: UNet2DConditionModel,
    *,
    num_steps: int,
    seed: int,
) -> Engine:
    """A surrogate with blocks copied from a UNet, under its engine.

    Args:
        num_steps: rewarded latents of one trajectory.
    """
    options = settings.surrogate
    surrogate = new_surrogate(
        options.backbone,
        unet,
        num_steps=num_steps,
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
