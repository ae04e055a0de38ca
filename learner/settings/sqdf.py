"""What a user sets of SQDF."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.cycles import Climbing, Finding, MicroBatched
from learner.settings.graph_rows import GraphRows
from learner.settings.model import Model
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

    @property
    def consistency_lora(self) -> str | None:
        """Of the consistency model, where one predicts clean latents."""
        return self.clean.lora

    @property
    def clean_states(self) -> int:
        """All that are kept, or none."""
        return self.states.kept if self.states.score_clean else 0

    @property
    def reference_states(self) -> int:
        """All that are kept, or none."""
        return self.states.kept if self.states.store_reference else 0

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """Always these."""
        return "SQDF", (
            "Diffusion Fine-Tuning via Reparameterized Policy Gradient of the Soft Q-Function, "
            "ICLR 2026"
        )

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """One step, and what predicts the clean latent after it."""
        rows = self.rows_at_once(ranks)
        guided = rows * (1 + model.is_guided)
        clean = {
            "consistency": (rows,),
            "tweedie": (guided,),
            "ddim": (guided,) * self.clean.calls,
        }
        asked = 0 if self.states.store_reference else guided
        return GraphRows(rows, (guided,), clean[self.clean.by], climbed=rows, reference=asked)

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """A model of few steps, more states than a chain has, clean latents without a model."""
        if model.is_few_step:
            yield (
                "model.num_steps",
                f"sqdf trains models of 50 steps, given {model.num_steps}: a few-step model has no "
                "chain of small steps; train it with lasro",
            )
        if self.target_kl is not None and model.precision != "fp32":
            yield (
                "method.target_kl",
                f"needs model.precision = fp32, given {model.precision}: bfloat16's rounding alone "
                "is a KL of several nats a step, so alpha would rise without end; leave it out",
            )
        if self.states.kept > model.num_steps:
            yield (
                "method.states.kept",
                f"must be at most model.num_steps = {model.num_steps}, given {self.states.kept}",
            )
        if self.states.score_clean and (self.clean.lora is None or not self.learns_surrogate):
            yield (
                "method.states.score_clean",
                "needs method.clean.by: consistency, whose model tells clean latents, and method."
                "reward: surrogate, which learns from their scores",
            )
        yield from super().problems(model, group_size, ranks)
