"""What alternating methods are put together from, alike for all of them.

    given = Given(model, learner, source, prompts, seat)     by whoever builds a method
    pipeline, base = untouched(given)
    parts = parts_around(policy, settings, given, pipeline, steps=..., labels=...)
    ...                                                  what is the method's own
    return parts.alternating(settings, its steps)

A surrogate copies blocks of a network before that is `placed`: its engine places it by itself, and
what is placed is rounded to what it computes in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from learner.engine import Engine
from learner.exploration import Climb
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.journal import Journal
from learner.methods.alternation import Alternating, PolicySteps
from learner.methods.climbed import DecodedReward, SurrogateReward
from learner.methods.surrogate_steps import SurrogateSteps
from learner.policy.components import PipelineFolder, PromptEncoder
from learner.policy.denoiser import Denoiser
from learner.policy.precision import round_frozen
from learner.seat import Seat
from learner.settings.cycles import Alternation, Climbing, Cycles
from learner.settings.learner import Learner
from learner.settings.model import Model
from learner.settings.surrogate import Surrogate
from learner.surrogate import surrogate_by
from learner.surrogate_training import SurrogateTrainer
from reward_servers.base import DifferentiableReward


@dataclass(frozen=True)
class Given:
    """What a builder is given beside its method's settings.

    Args:
        prompts: all of the run.
        rewards: by the names of `source.rewards`, where they are climbed by their own gradient.
        shared_initial_noise: whether samplers start all members of a group from one noise.
    """

    model: Model
    learner: Learner
    source: GroupSource
    prompts: Sequence[str]
    seat: Seat
    rewards: Mapping[str, DifferentiableReward] = field(default_factory=dict)
    shared_initial_noise: bool = False


@dataclass(frozen=True)
class Parts:
    """What every method has on one rank.

    Args:
        engine: of the policy.
        labels: of the rewarded latents of a trajectory, such as '2step'.
    """

    given: Given
    pipeline: PipelineFolder
    engine: Engine
    encode: PromptEncoder
    groups: ScoredGroups
    labels: Sequence[str]
    journal: Journal

    def placed(self, unet: UNet2DConditionModel, *, differentiated: bool = False) -> Denoiser:
        """A frozen network, where the policy is.

        Args:
            differentiated: a gradient passes it, to what it is asked about.
        """
        torch.nn.Module.to(unet, self.engine.device)
        if differentiated and self.given.learner.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        round_frozen(unet, self.given.model.precision)
        return Denoiser.of(unet, self.given.model)

    def alternating(
        self, settings: Cycles, steps: PolicySteps, surrogate: SurrogateSteps | None = None
    ) -> Alternating:
        """The method, ready for the trainer."""
        round_frozen(self.engine.module, self.given.model.precision)
        return Alternating(
            settings,
            steps,
            groups=self.groups,
            labels=self.labels,
            policy_engine=self.engine,
            surrogate=surrogate,
            journal=self.journal,
            seat=self.given.seat,
        )


def untouched(given: Given) -> tuple[PipelineFolder, UNet2DConditionModel]:
    """The policy's pipeline, and its UNet as it is before training, frozen."""
    torch.set_num_threads(given.learner.threads)
    pipeline = PipelineFolder.of(given.model)
    return pipeline, pipeline.unet(given.model.attention).requires_grad_(False)


def parts_around(
    policy: Denoiser,
    settings: Cycles,
    given: Given,
    pipeline: PipelineFolder,
    *,
    steps: Sequence[int],
    labels: Sequence[str],
) -> Parts:
    """A policy under its engine, and what every method has beside it.

    Args:
        steps: positions among a record's scored latents that are trained on.
        labels: of these.
    """
    engine = policy_engine(settings, given.learner, policy)
    return Parts(
        given,
        pipeline,
        engine,
        pipeline.prompt_encoder(engine.device, given.prompts),
        ScoredGroups(
            given.source,
            steps=steps,
            admits=given.seat.is_first,
            round_ends=settings.round_ends,
        ),
        labels,
        Journal(),
    )


def policy_engine(settings: Cycles, learner: Learner, denoiser: Denoiser) -> Engine:
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
        micro_batches=settings.parts_of_step,
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


class Surrogacy:
    """The surrogate of a method: what policy steps climb of it, and its own steps.

    Args:
        unet: whose blocks it copies.
    """

    def __init__(self, settings: Alternation, parts: Parts, unet: UNet2DConditionModel) -> None:
        options, learner, seat = settings.surrogate, parts.given.learner, parts.given.seat
        num_steps = len(parts.labels) if settings.tells_steps else 1
        network = surrogate_by(options, unet, num_steps=num_steps, seed=seat.seed)
        if learner.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        engine = surrogate_engine(options, learner, network)
        self.climb = Climb(engine.module, options)
        self.steps = SurrogateSteps(
            settings,
            SurrogateTrainer(
                options,
                engine,
                parts.encode,
                tells_steps=settings.tells_steps,
                groups_at_once=options.batch_groups // learner.ranks,
            ),
            engine,
            self.climb,
            groups=parts.groups,
            labels=parts.labels,
            journal=parts.journal,
            seat=seat,
        )


def climbed_reward(
    settings: Climbing,
    parts: Parts,
    base: UNet2DConditionModel,
) -> tuple[DecodedReward | SurrogateReward, SurrogateSteps | None]:
    """What is climbed by its own gradient, and the steps of its surrogate if it is one.

    Args:
        base: whose blocks a surrogate copies.
    """
    if settings.reward == "decoded":
        vae = parts.pipeline.vae(str(parts.engine.device)).requires_grad_(False)
        precision = parts.given.model.vae_precision
        round_frozen(vae, precision)
        decoded = DecodedReward(
            vae,
            parts.given.rewards,
            parts.groups.weighed,
            precision=precision,
            checkpointing=parts.given.learner.gradient_checkpointing,
        )
        return decoded, None
    surrogate = Surrogacy(settings, parts, base)
    return SurrogateReward(surrogate.climb), surrogate.steps
