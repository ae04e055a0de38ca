"""What a user sets of SQDF."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.cycles import Climbing, MicroBatched
from learner.settings.types import Count, NonNegative, Positive, Section, Share, refuse_unused


class StateDraw(Section):
    """Which states of replayed trajectories the policy steps from."""

    kept: Count = 6
    """States that a trajectory keeps."""
    keep: Literal["spread", "last"] = "spread"
    """Which those are: one of each of as many parts of the chain, of equal weight by `times`; or
    those before the last steps, as DRaFT has it."""
    score_clean: bool = False
    """Also predict and score the clean latent of every kept state: more data like what the
    surrogate is asked, for one network call each."""
    store_reference: bool = False
    """Let samplers keep the original model's noise at every kept state, so that the learner need
    not call that model; each state then takes twice the bytes."""
    trajectories: Literal["uniform", "prioritised"] = "uniform"
    """How trajectories are drawn: all alike, or by the rank of their reward."""
    rank_exponent: NonNegative = 0.7
    """Exponent a of the priority 1 / rank^a."""
    fresh: Share = 0.0
    """Share of a batch that comes from the newest policy versions."""
    times: Literal["uniform", "discounted"] = "uniform"
    """How a trajectory's states are drawn: all alike, with the discount in the loss (as in the
    paper), or in proportion to the discount, which then is not in the loss; the KL is discounted
    with it then, unlike in the paper, and both weigh T / Σ γ^k times as much."""

    @model_validator(mode="after")
    def _ranks_are_of_priorities(self) -> Self:
        if self.trajectories != "prioritised":
            refuse_unused(
                self,
                ["rank_exponent"],
                "is of priorities, and trajectories are drawn all alike",
                "set `trajectories: prioritised`",
            )
        return self


class Clean(Section):
    """How the rewarded clean latent is predicted from the state after a step."""

    by: Literal["consistency", "tweedie", "ddim"] = "consistency"
    """A consistency model in one call; or the reference model, by its expectation or by a few
    deterministic steps (ablations)."""
    lora: str | None = None
    """Folder or hub id of an LCM-LoRA over the policy's pipeline, the consistency model."""
    calls: Count = 4
    """Steps of `ddim`."""

    @model_validator(mode="after")
    def _consistency_has_a_model(self) -> Self:
        if (self.by == "consistency") != (self.lora is not None):
            raise ValueError(
                "`by: consistency` needs `lora`, the folder or hub id of an LCM-LoRA; tweedie and "
                "ddim take none"
            )
        if self.by != "ddim":
            refuse_unused(self, ["calls"], f"`by: {self.by}` takes one call", "set `by: ddim`")
        return self


class Sqdf(MicroBatched, Climbing):
    """SQDF: reparameterised steps up a training-free soft Q, for models of many steps."""

    kind: Literal["sqdf"] = "sqdf"
    """Which method this is."""
    clean: Clean
    """How a clean latent is predicted from a noisy one."""
    states: StateDraw = StateDraw()
    """Which replayed states the policy steps from."""
    alpha: NonNegative = 1.0
    """Weight of the KL to the original model."""
    target_kl: Positive | None = None
    """True KL of a step, in nats, that alpha is steered towards; null: alpha stays."""
    discount: Annotated[float, Field(gt=0, le=1)] = 0.9
    """γ: a reward counts γ^k where k steps come after."""
    positive_only: bool = False
    """Drop rows whose reward is not above 0, as the paper's code does; wrong for rewards around
    zero, as a standard score is."""

    @model_validator(mode="after")
    def _target_kl_has_a_weight_to_steer(self) -> Self:
        if self.target_kl is not None and self.alpha == 0:
            raise ValueError(
                "`target_kl` steers `alpha` by a factor, which does nothing for alpha 0: give an "
                "alpha to begin with, such as 1, or leave target_kl out"
            )
        return self
