"""What a user sets of LaSRO."""

from typing import Literal, Self

from pydantic import model_validator

from learner.settings.cycles import Alternation
from learner.settings.types import Count, NonNegative, Number, Positive, Section


class Anchor(Section):
    """The distillation loss that keeps the policy a good image model."""

    data: Literal["generated", "none"] = "generated"
    """What it distils on. `generated`: the best image of each group from the original model;
    `none`: no anchor."""
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
