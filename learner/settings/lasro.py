"""What a user sets of LaSRO."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from learner.settings.cycles import Alternation, Finding
from learner.settings.graph_rows import GraphRows
from learner.settings.model import Model
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

    tells_steps: ClassVar[bool] = True
    holds_reference: ClassVar[bool] = False

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

    @property
    def batches(self) -> Mapping[str, int]:
        """With the images of an anchor step, where there is an anchor."""
        if self.anchor.data == "none":
            return super().batches
        return {**super().batches, "method.anchor.batch": self.anchor.batch}

    def scored_latents(self, num_steps: int) -> int:
        """Those of the rewarded steps, the last ones."""
        return num_steps if self.reward_steps == "all" else 1

    def draws_per_cycle(self, num_steps: int) -> float:
        """None: fresh noise is enough."""
        return 0.0

    def distils(self, is_few_step: bool) -> bool:
        """For its anchor."""
        return self.anchor.data != "none"

    def needs_teacher(self, is_few_step: bool) -> bool:
        """In any case: the surrogate copies blocks of it."""
        return True

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """Always these."""
        return "LaSRO", "arXiv:2411.15247"

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """All calls of a sample, the first of them with the anchor's rows."""
        rows = self.policy_batch // ranks
        anchored = -(-self.anchor.batch // ranks) if self.anchor.data != "none" else 0
        return GraphRows(
            rows,
            (rows + anchored, *(rows,) * (model.num_steps - 1)),
            climbed=rows * self.scored_latents(model.num_steps),
            reference=(1 + (model.guidance_scale != 1)) * anchored,
            target=anchored,
        )

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """A model of many steps, weights of other steps, an anchor without its teacher."""
        if not model.is_few_step:
            yield (
                "model.num_steps",
                f"lasro trains models of 1, 2, 3, 4 or 8 steps, given {model.num_steps}",
            )
        weights, scored = self.step_weights, self.scored_latents(model.num_steps)
        if weights is not None and len(weights) != scored:
            yield (
                "method.step_weights",
                f"must hold {scored} weights, one for each rewarded step (model.num_steps "
                f"{model.num_steps}, reward_steps {self.reward_steps}), given {len(weights)}",
            )
        if self.anchor.data != "none" and model.teacher is None:
            yield (
                "model.teacher",
                "is missing: method.anchor distils from it; name a multi-step pipeline, or set "
                "method.anchor.data: none",
            )
