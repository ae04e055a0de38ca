"""What a user sets of any method: rounds of fresh samples, policy steps, a surrogate to climb.

What others have to know of a method, its settings tell: how often it draws, what it asks of
samplers, what its networks are. A new method needs no change of those who ask.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from learner.settings.graph_rows import GraphRows
from learner.settings.model import Model
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

Finding = tuple[str, str]
"""A setting, by its dotted path in a run's config, and what is wrong with it."""


class Cycles(Section):
    """What all methods share: rounds of fresh samples and policy steps."""

    rows_per_example: ClassVar[int] = 1
    """Latents in one of the rows that `policy_batch` counts."""
    tells_steps: ClassVar[bool] = False
    """Whether a surrogate is told which of a trajectory's scored latents one is; all have one scale
    otherwise."""
    holds_reference: ClassVar[bool] = True
    """Whether the learner holds the untouched network beside the policy."""
    takes_parts: ClassVar[bool] = False
    """Whether `micro_batches` cuts a rank's rows of a policy step into parts."""

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
    def reward_gradients(self) -> int:
        """Pictures of a run at which the learner asks for the rewards' own gradient."""
        return 0

    @property
    def is_on_policy(self) -> bool:
        """Whether a cycle trains on nothing but what the newest policy version sampled."""
        return False

    @property
    def parts_of_step(self) -> int:
        """Parts that a rank's rows of a policy step go through in."""
        return 1

    @property
    def batches(self) -> Mapping[str, int]:
        """Rows of each kind of step, which ranks share evenly, by their setting."""
        return {"method.policy_batch": self.policy_batch}

    @property
    def consistency_lora(self) -> str | None:
        """LCM-LoRA over the policy's pipeline that tells clean latents; None: there is none."""
        return None

    @property
    def clean_states(self) -> int:
        """States of a trajectory whose clean latent samplers predict, to be scored."""
        return 0

    @property
    def reference_states(self) -> int:
        """States of a trajectory at which samplers keep the original model's noise."""
        return 0

    @property
    def latents_per_state(self) -> int:
        """Latents that a record holds for each state that it keeps, that state among them."""
        return 1 + (self.clean_states > 0) + (self.reference_states > 0)

    def scored_latents(self, num_steps: int) -> int:
        """Clean latents of one trajectory that are scored."""
        return 1 + self.clean_states

    def draws_per_cycle(self, num_steps: int) -> float:
        """Trajectories that the policy steps of a cycle draw from the replay."""
        return self.policy_steps * self.policy_batch * self.rows_per_example

    def distils(self, is_few_step: bool) -> bool:
        """Whether the policy is held to a teacher by a distillation loss."""
        return False

    def needs_teacher(self, is_few_step: bool) -> bool:
        """Whether a teacher's network is read, for distillation or to copy its blocks."""
        return self.distils(is_few_step)

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """Name of the method as these settings have it, and its paper."""
        raise NotImplementedError

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """Of one rank's micro-batch."""
        raise NotImplementedError

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """What is impossible of these settings with that model and groups of that size."""
        yield from ()

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


def lone_pictures(group_size: int) -> Iterator[Finding]:
    """Groups in which no picture is the better one."""
    if group_size < 2:
        yield (
            "actors.group_size",
            f"must be at least 2, given {group_size}: the better picture of a group is preferred "
            "to the worse",
        )


class MicroBatched(Cycles):
    """What methods share whose policy step may take a rank's rows part by part."""

    takes_parts: ClassVar[bool] = True

    micro_batches: Count = 1
    """Parts that a rank's rows of a policy step go through in, one after the other, for less
    memory."""

    @property
    def parts_of_step(self) -> int:
        """As many as are set."""
        return self.micro_batches

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """Parts of different sizes."""
        rows = self.policy_batch // ranks
        if rows % self.micro_batches:
            yield (
                "method.micro_batches",
                f"must divide a rank's rows, method.policy_batch / learner.ranks = {rows}, given "
                f"{self.micro_batches}: parts of one size have the gradient of the whole",
            )
        yield from super().problems(model, group_size, ranks)

    def rows_at_once(self, ranks: int) -> int:
        """Rows of a rank's micro-batch, the largest of them."""
        return -(-(self.policy_batch // ranks) // self.micro_batches)


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
    def batches(self) -> Mapping[str, int]:
        """With the groups of a surrogate step, where there are any."""
        if not self.learns_surrogate:
            return super().batches
        return {**super().batches, "method.surrogate.batch_groups": self.surrogate.batch_groups}

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

    @property
    def reward_gradients(self) -> int:
        """One a row of a policy step."""
        rows = self.cycles * self.policy_steps * self.policy_batch
        return rows if self.differentiates_rewards else 0

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
