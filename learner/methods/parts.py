"""What alternating methods are put together from, alike for all of them."""

from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from learner.engine import Engine
from learner.exploration import Climb
from learner.groups import GroupSource, ScoredGroups
from learner.journal import Journal
from learner.methods.climbed import DecodedReward, SurrogateReward
from learner.methods.surrogate_steps import SurrogateSteps
from learner.policy.components import PipelineFolder, PromptEncoder
from learner.policy.denoiser import Denoiser
from learner.seat import Seat
from learner.settings import Alternation, Climbing, Cycles, Learner, Surrogate
from learner.surrogate import new_surrogate
from learner.surrogate_training import SurrogateTrainer
from reward_servers.base import DifferentiableReward


def policy_engine(
    settings: Cycles, learner: Learner, denoiser: Denoiser, *, micro_batches: int = 1
) -> Engine:
    """The policy under its engine."""
    if learner.gradient_checkpointing:
        denoiser.unet.enable_gradient_checkpointing()
    return Engine(
        denoiser,
        [parameter for parameter in denoiser.parameters() if parameter.requires_grad],
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        zero_stage=learner.zero_stage,
        offload=learner.offload == "cpu",
        grad_clip=learner.grad_clip,
        rows_per_rank=settings.policy_batch // learner.ranks,
        micro_batches=micro_batches,
    )


def surrogate_engine(options: Surrogate, learner: Learner, network: nn.Module) -> Engine:
    """A surrogate under its engine."""
    return Engine(
        network,
        network.parameters(),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        zero_stage=learner.zero_stage,
        offload=learner.offload == "cpu",
        grad_clip=learner.grad_clip,
        rows_per_rank=options.batch_groups // learner.ranks,
    )


def scored_groups(
    settings: Cycles, source: GroupSource, *, steps: Sequence[int], seat: Seat
) -> ScoredGroups:
    """The replay's groups of a whole run.

    Args:
        steps: positions among a record's scored latents that are trained on.
    """
    return ScoredGroups(source, steps=steps, admits=seat.is_first, round_ends=settings.round_ends)


class Surrogacy:
    """The surrogate of a method: what policy steps climb of it, and its own steps.

    Args:
        unet: whose blocks it copies.
        labels: of the rewarded latents of a trajectory.
        tells_steps: whether it knows which of them a latent is; all have one scale otherwise.
    """

    def __init__(
        self,
        settings: Alternation,
        learner: Learner,
        unet: UNet2DConditionModel,
        encode: PromptEncoder,
        *,
        groups: ScoredGroups,
        labels: Sequence[str],
        tells_steps: bool = True,
        journal: Journal,
        seat: Seat,
    ) -> None:
        options = settings.surrogate
        network = new_surrogate(
            options.backbone,
            unet,
            num_steps=len(labels) if tells_steps else 1,
            heads=options.heads,
            timestep=options.timestep,
            precision=options.precision,
            seed=seat.seed,
        )
        if learner.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        engine = surrogate_engine(options, learner, network)
        self.climb = Climb(engine.module, options)
        self.steps = SurrogateSteps(
            settings,
            SurrogateTrainer(
                options,
                engine,
                encode,
                tells_steps=tells_steps,
                groups_at_once=options.batch_groups // learner.ranks,
            ),
            engine,
            self.climb,
            groups=groups,
            labels=labels,
            journal=journal,
            seat=seat,
        )


def climbed_reward(
    settings: Climbing,
    learner: Learner,
    pipeline: PipelineFolder,
    base: UNet2DConditionModel,
    encode: PromptEncoder,
    rewards: Mapping[str, DifferentiableReward],
    *,
    groups: ScoredGroups,
    labels: Sequence[str],
    device: torch.device,
    journal: Journal,
    seat: Seat,
) -> tuple[DecodedReward | SurrogateReward, SurrogateSteps | None]:
    """What is climbed by its own gradient, and the steps of its surrogate if it is one.

    Args:
        base: whose blocks a surrogate copies.
        rewards: by name; used where they are climbed themselves.
    """
    if settings.reward == "decoded":
        vae = pipeline.vae(str(device)).requires_grad_(False)
        checkpointing = learner.gradient_checkpointing
        return DecodedReward(vae, rewards, groups.weighed, checkpointing=checkpointing), None
    surrogate = Surrogacy(
        settings,
        learner,
        base,
        encode,
        groups=groups,
        labels=labels,
        tells_steps=False,
        journal=journal,
        seat=seat,
    )
    return SurrogateReward(surrogate.climb), surrogate.steps
