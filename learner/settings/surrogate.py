"""What a user sets of a learned reward and of its fit before training."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.types import (
    Count,
    NonNegative,
    Positive,
    Precision,
    Section,
    Share,
    refuse_unused,
)


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
    """What the policy maximises: `pessimistic`, the mean over the heads less their spread; for
    online black-box optimisation `bootstrap`, the largest head, or `ucb`, the mean and a bonus for
    what the labels say little about."""
    ucb_bonus: NonNegative = 1.0
    """Weight of that bonus, sqrt(φᵀ(Σφφᵀ + λI)⁻¹φ) of the last layer's features φ."""
    ucb_ridge: Positive = 1.0
    """λ in it."""
    loss: Literal["best_worst", "all_pairs"] = "best_worst"
    """Pairs of a group in the ranking loss: best against worst, or every ordered pair."""
    regression_weight: NonNegative = 1.0
    """Weight of a squared error to the reward's standard score beside the ranking loss. Pairs alone
    (0, as in LaSRO's paper) leave open where a score's zero lies and what its unit is."""
    learning_rate: Positive = 1e-4
    """Step size of AdamW."""
    batch_groups: Count = 32
    """Groups in one surrogate step."""
    timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Diffusion time that its network is given; near 0 as its latents are clean."""
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
        if self.regression_weight == 0 and (self.pessimism > 0 or self.confidence != "pessimistic"):
            raise ValueError(
                "regression_weight 0 leaves every head a zero and a unit of its own: their spread, "
                "their largest or a bonus beside them means nothing; give a positive one, such as 1"
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
    """Fitting the surrogate to samples of the original model."""

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
