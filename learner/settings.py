"""What a user sets about the learner's ranks and the methods.

One frozen model a section; a field's docstring is its documentation, and its default stands here
and nowhere else. Imports no torch, so a config error costs no start-up time.
"""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_./-]{0,61}[a-zA-Z0-9])?")


def _are_labels(value: dict[str, str]) -> dict[str, str]:
    for text in (*value, *value.values()):
        if not _LABEL.fullmatch(text):
            raise ValueError(
                f"names labels of Ray nodes, such as {{fleetune-role: sampler}}: at most 63 "
                f"letters, digits, '-', '_', '.' and '/', given {text!r}"
            )
    return value


NodeLabels = Annotated[dict[str, str], AfterValidator(_are_labels)]
"""What `ray start --labels`, or a group of KubeRay, says of a node."""
Precision = Literal["fp32", "bf16", "auto"]
"""auto: bf16 where the device has instructions for it."""


class Section(BaseModel):
    """What every section shares: no unknown key, no change after loading."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,
        validate_default=True,
        protected_namespaces=(),
    )


def refuse_unused(section: Section, names: Sequence[str], because: str, remedy: str) -> None:
    """Refuses settings that would be set in vain.

    Args:
        names: fields that mean nothing here, and may have their defaults alone; `a.b`: of a
            section within.

    Raises:
        ValueError: one has another value.
    """
    found = []
    for name in names:
        *within, field = name.split(".")
        holder = section
        for part in within:
            holder = getattr(holder, part)
        if getattr(holder, field) != type(holder).model_fields[field].default:
            found.append(name)
    if found:
        them = "it" if len(found) == 1 else "them"
        raise ValueError(f"{', '.join(found)}: {because}; leave {them} out, or {remedy}")


class Learner(Section):
    """The DeepSpeed ranks and their checkpoints."""

    ranks: Count = 1
    """Processes of the learner; a batch is cut evenly among them."""
    zero_stage: Literal[0, 1, 2] = 0
    """What DeepSpeed shards over the ranks: 1 the optimiser's state, 2 the gradients too."""
    offload: Literal["none", "cpu"] = "none"
    """`cpu`: DeepSpeed's ZeRO keeps the optimiser's state, and a copy of the weights that it
    updates, in the memory of the host, and updates there: less memory of the GPU for slower steps.
    It pays where all weights of a large UNet are trained. Needs zero_stage 1 or 2."""
    threads: Count = 1
    """CPU threads of one rank's torch."""
    num_cpus: NonNegative = 1.0
    """Ray CPUs of one rank."""
    num_gpus: NonNegative = 0.0
    """Ray GPUs of one rank."""
    node_labels: NodeLabels = Field(default_factory=dict)
    """Labels that a Ray node must have to hold a rank; none: any node will do."""
    grad_clip: Positive = 1.0
    """Largest gradient norm of a step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more
    time."""
    checkpoint_every_cycles: Count = 5
    """Cycles between two checkpoints; the end of a run always writes one."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept."""
    sample_trace: bool = True
    """Write into `samples/` where every sample came from and which cycles drew it, some 300 bytes
    each, for `deploy.trace`."""


class Surrogate(Section):
    """The latent reward model that the policy is trained against."""

    backbone: Literal["unet_encoder", "unet", "conv"] = "unet_encoder"
    """The policy family's own UNet, its encoder or all of it, or a small convolutional net from
    scratch."""
    heads: Count = 1
    """Bootstrap heads, each trained on its own resample."""
    pessimism: NonNegative = 0.0
    """λ in mean − λ·std over the heads, which the policy maximises."""
    confidence: Literal["pessimistic", "bootstrap", "ucb"] = "pessimistic"
    """What the policy climbs: `pessimistic`, the mean over the heads less their spread; for online
    black-box optimisation `bootstrap`, the largest head, or `ucb`, the mean and a bonus for what
    the labels tell little about."""
    ucb_bonus: NonNegative = 1.0
    """Weight of that bonus, sqrt(φᵀ(Σφφᵀ + λI)⁻¹φ) of the last layer's features φ."""
    ucb_ridge: Positive = 1.0
    """λ in it."""
    loss: Literal["best_worst", "all_pairs"] = "best_worst"
    """Pairs of a group in the ranking loss: best against worst, or every ordered pair."""
    regression_weight: NonNegative = 0.0
    """Weight of a squared error to the reward itself beside the ranking loss."""
    learning_rate: Positive = 1e-4
    """Step size of AdamW."""
    batch_groups: Count = 32
    """Groups in one surrogate step."""
    timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Diffusion time that the encoder is told; near 0 as its latents are clean."""
    precision: Precision = "fp32"
    """What it computes in: bf16 is quicker where the device has it and far slower elsewhere; auto
    takes it where the device has it. Weights stay fp32."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW."""

    @model_validator(mode="after")
    def _doubt_counts_in_one_way(self) -> Self:
        if self.pessimism > 0 and self.heads < 2:
            raise ValueError(
                f"pessimism {self.pessimism:g} needs the spread of at least 2 heads; "
                f"heads is {self.heads}"
            )
        if self.confidence == "bootstrap" and self.heads < 2:
            raise ValueError(
                f"confidence: bootstrap is the largest of at least 2 heads; heads is {self.heads}"
            )
        if self.confidence != "pessimistic" and self.pessimism > 0:
            raise ValueError(
                f"pessimism {self.pessimism:g} and confidence {self.confidence} contradict each "
                "other; set one of them"
            )
        if self.confidence != "ucb":
            refuse_unused(
                self,
                ["ucb_bonus", "ucb_ridge"],
                f"no bonus is given with `confidence: {self.confidence}`",
                "set `confidence: ucb`",
            )
        return self


class Pretrain(Section):
    """Fitting the surrogate to samples of the untouched policy."""

    groups: Count = 256
    """Groups that are sampled for it."""
    max_steps: Count = 2000
    """Most surrogate steps."""
    target_accuracy: Share = 0.9
    """Held-out pair accuracy that ends it."""
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """Share of the groups that are held out."""
    patience: Count = 5
    """Checks without a better held-out accuracy before it ends. The last weights are kept, not
    those of the best check."""
    check_every_steps: Count = 50
    """Surrogate steps between two checks."""

    @property
    def held_out_stride(self) -> int:
        """Of the groups in a row, the first of every so many is held out."""
        return max(2, round(1 / self.holdout_share))

    @property
    def held_out(self) -> int:
        """How many that are."""
        return -(-self.groups // self.held_out_stride)


class Anchor(Section):
    """The distillation loss that keeps the policy a good image model."""

    data: Literal["generated", "none"] = "generated"
    """What it distils on: of the untouched model's own images the best of each group by the reward,
    or nothing (no anchor)."""
    ratio: Positive | None = 0.3
    """Gradient norm of the anchor relative to the reward's; null: use `weight`."""
    weight: NonNegative | None = None
    """Constant weight instead of a ratio."""
    batch: Count = 16
    """Images in one anchor step."""

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.data != "none" and (self.ratio is None) == (self.weight is None):
            raise ValueError("give either ratio or weight and set the other to null")
        return self


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
    """Pair accuracy on fresh samples below which a cycle leaves its policy steps out; 0: never."""

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
    """What a policy step climbs: the latent surrogate's standard score, for any reward; or the
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
        return self


class Lasro(Alternation):
    """LaSRO: a learned latent surrogate of any reward, for models of few steps."""

    kind: Literal["lasro"] = "lasro"
    """Which method this is."""
    reward_steps: Literal["all", "last"] = "all"
    """Which sampler steps' clean latents are scored and rewarded."""
    step_weights: tuple[Number, ...] | None = None
    """Weight of every rewarded step's surrogate reward (c1, c2); null: 1 each."""
    cross_term: bool = False
    """Let a later step's gradient flow into the step before it."""
    anchor: Anchor = Anchor()
    """The distillation loss beside the reward."""
