"""What a user sets of any method: rounds of fresh samples, policy steps, a surrogate to climb."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.surrogate import Pretrain, Surrogate
from learner.settings.types import (
    Count,
    NonNegative,
    Positive,
    Section,
    Share,
    Whole,
    refuse_unused,
)


class Cycles(Section):
    """What all methods share: rounds of fresh samples and policy steps."""

    cycles: Count = 20
    """Rounds of fresh samples and policy steps, and of surrogate steps where there are any."""
    groups_per_cycle: Count | tuple[Count, ...] = 32
    """Fresh groups of the current policy that a cycle samples and scores; a list has one number for
    every cycle, such as rounds of queries that grow."""
    policy_steps: Count = 5
    """Policy steps of a cycle (n_g)."""
    policy_batch: Count = 32
    """Rows of one policy step: prompts (lasro), replayed states (sqdf, draft), steps of fresh
    trajectories (ppo), pairs of them (pso), clean latents (gors) or pairs of those (dpo). For ppo
    and pso a cycle's `policy_steps` of them may take in fewer steps than were sampled."""
    learning_rate: Positive = 1e-4
    """Step size of the policy's AdamW."""
    weight_decay: NonNegative = 0.0
    """Weight decay of the policy's AdamW."""
    weight_average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running average of the policy, which is the result of a run that has trained to
    its end; null: none. Evaluations on the way, and what `evaluation.stop` or `evaluation.best_by`
    keep, are of the policy itself."""

    @property
    def learns_surrogate(self) -> bool:
        """Whether policy steps climb a surrogate of the reward."""
        return False

    @property
    def differentiates_rewards(self) -> bool:
        """Whether policy steps take the gradient of the rewards themselves."""
        return False

    @property
    def is_on_policy(self) -> bool:
        """Whether a cycle trains on nothing but what the newest policy version sampled."""
        return False

    @property
    def cycle_sizes(self) -> tuple[int, ...]:
        """Groups of every cycle."""
        sizes = self.groups_per_cycle
        return (sizes,) * self.cycles if isinstance(sizes, int) else sizes

    @property
    def round_sizes(self) -> tuple[int, ...]:
        """Groups that are sampled together, before the first cycle and after those that need it."""
        return self.cycle_sizes

    @property
    def round_ends(self) -> tuple[int, ...]:
        """The first ticket after each of these rounds."""
        return tuple(accumulate(self.round_sizes))

    def most_groups(self, rounds: int) -> int:
        """Groups of so many rounds in a row, of those where they are the most."""
        ends = (0, *self.round_ends)
        return max(
            ends[min(first + rounds, len(ends) - 1)] - ends[first] for first in range(len(ends) - 1)
        )

    def odd_round(self, done: Sequence[int]) -> str | None:
        """Why a run cannot go on with these rounds; None: it can.

        Cycles may follow or be left out. Rounds of other sizes would give what has been sampled to
        other cycles than those that have trained on it.

        Args:
            done: `round_ends` of the rounds that are behind it.
        """
        pairs = zip(done, self.round_ends, strict=False)
        odd = next((n for n, (was, given) in enumerate(pairs) if was != given), None)
        if odd is None:
            return None
        first, second = (ends[odd] - (0, *ends)[odd] for ends in (done, self.round_ends))
        return (
            f"round {odd + 1} of the {len(done)} that this run has sampled had {first} groups, and "
            f"has {second} by what is given now: give method.groups_per_cycle (and "
            "method.pretrain.groups, the first round of methods that have it) as they were for "
            "all of these, whatever is given for later ones, or begin another run"
        )

    def tickets_before(self, cycle: int) -> range:
        """The newest tickets that a cycle finds, numbered from 0."""
        return range(*(0, *self.round_ends)[cycle : cycle + 2])

    def tickets_after(self, cycle: int) -> range:
        """Those that are sampled by what a cycle has learned; none where nobody would use them."""
        ends = self.round_ends
        return range(ends[cycle], ends[min(cycle + 1, len(ends) - 1)])

    @model_validator(mode="after")
    def _every_cycle_has_its_groups(self) -> Self:
        sizes = self.groups_per_cycle
        if not isinstance(sizes, int) and len(sizes) != self.cycles:
            raise ValueError(
                f"groups_per_cycle must be one number, or one for each of the {self.cycles} "
                f"cycles, given {len(sizes)} numbers"
            )
        return self


class MicroBatched(Cycles):
    """What methods share whose policy step may take a rank's rows part by part."""

    micro_batches: Count = 1
    """Parts that a rank's rows of a policy step go through in, one after the other, for less
    memory."""


class Alternation(Cycles):
    """What methods share that alternate between a surrogate of the reward and the policy."""

    surrogate: Surrogate = Surrogate()
    """The latent reward model."""
    pretrain: Pretrain = Pretrain()
    """Its fit before the policy moves."""
    surrogate_steps: Whole = 20
    """Surrogate steps of a cycle (n_s); 0: it stays as it was fitted before the first."""
    accuracy_brake: Share = 0.0
    """Skip policy steps while pair accuracy on fresh samples is below this; 0: never."""

    @property
    def learns_surrogate(self) -> bool:
        """Its settings mean nothing where none is climbed."""
        return True

    @property
    def round_sizes(self) -> tuple[int, ...]:
        """Of before the first cycle, and of each of them."""
        return (self.pretrain.groups, *self.cycle_sizes)


class Climbing(Alternation):
    """What methods share that take a reward's own gradient, on models of many steps."""

    reward: Literal["surrogate", "decoded"] = "surrogate"
    """What a policy step maximises: the latent surrogate's standard score, for any reward; or the
    rewards themselves on images decoded in the learner, which must be differentiable."""
    kl_reduce: Literal["sum", "mean", "sqdf"] = "sqdf"
    """Form of the KL: the true one, its mean over the latent, or twice that mean (the code of
    SQDF, whose alphas are for this)."""
    kl_std: Literal["posterior", "forward"] = "posterior"
    """σ that the KL divides by: the step's own, in which one of 50 steps has half of the weight,
    or the forward process', which is of one size in all."""

    @property
    def learns_surrogate(self) -> bool:
        """Not where the rewards themselves are climbed."""
        return self.reward == "surrogate"

    @property
    def differentiates_rewards(self) -> bool:
        """On images that the learner decodes."""
        return self.reward == "decoded"

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> Self:
        if not self.learns_surrogate:
            fit = [f"pretrain.{name}" for name in Pretrain.model_fields if name != "groups"]
            refuse_unused(
                self,
                ["surrogate", "surrogate_steps", "accuracy_brake", *fit],
                "no surrogate is learned with `reward: decoded`",
                "set `reward: surrogate`",
            )
        elif self.surrogate.regression_weight == 0:
            raise ValueError(
                "surrogate.regression_weight 0 leaves open what one unit of the surrogate's score "
                "is, against which the KL is weighed; give a positive one, such as 1"
            )
        return self
