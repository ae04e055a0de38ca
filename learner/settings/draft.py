"""What a user sets of reward gradients through a sampler's last steps: DRaFT, ReFL, SEIKO."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.cycles import Climbing, Finding, MicroBatched
from learner.settings.graph_rows import GraphRows
from learner.settings.model import Model
from learner.settings.types import Count, NonNegative, Number, Share, refuse_unused

_TITLES = {
    "last": ("DRaFT-K", "arXiv:2309.17400"),
    "renoised": ("DRaFT-LV", "arXiv:2309.17400"),
    "stopped": ("ReFL", "arXiv:2304.05977"),
}


class Draft(MicroBatched, Climbing):
    """The reward's gradient through the last steps themselves, for models of many steps."""

    kind: Literal["draft"] = "draft"
    """Which method this is."""
    path: Literal["last", "renoised", "stopped"] = "last"
    """What the gradient goes through: the last steps (DRaFT-K); the last step, of a clean latent
    that is noised again (DRaFT-LV); or one late call that predicts the clean latent (ReFL)."""
    last_steps: Count = 1
    """K of `last`."""
    renoisings: Count = 2
    """Noises of `renoised`; their gradients are averaged."""
    stopped_in: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the chain, its end, in which `stopped` stops at a random step."""
    ceiling: Number | None = None
    """Reward above which nothing more is gained, as in ReFL's max(0, 2 − r); null: none."""
    alpha: NonNegative = 0.0
    """Weight of the KL to the original model; 0: none."""
    kl_over: Literal["path", "chain"] = "path"
    """Which steps' KL is summed: those of the reward's gradient; or all of the chain, by one more
    state of each sample that stands for the steps outside the path, for one more call of the
    policy and one of the original model. Without alpha there is none."""
    fresh: Share = 1.0
    """Share of a batch that starts from samples of the newest policy versions."""

    @model_validator(mode="after")
    def _a_path_has_its_own_settings(self) -> Self:
        told = {"last": "last_steps", "renoised": "renoisings", "stopped": "stopped_in"}
        for path, name in told.items():
            if path != self.path:
                refuse_unused(self, [name], f"is of `path: {path}`", f"set `path: {path}`")
        return self

    def starts(self, num_steps: int) -> range:
        """States of the chain that the gradient may start from; `num_steps` is the clean latent."""
        if self.path == "last":
            return range(num_steps - self.last_steps, num_steps - self.last_steps + 1)
        if self.path == "renoised":
            return range(num_steps, num_steps + 1)
        return range(num_steps - max(1, round(self.stopped_in * num_steps)), num_steps)

    @property
    def reward_gradients(self) -> int:
        """One a clean latent that is noised again."""
        return super().reward_gradients * (self.renoisings if self.path == "renoised" else 1)

    def steps_beside(self, num_steps: int) -> range:
        """Steps of the chain, its first, whose KL is measured at a state of their own."""
        told = self.alpha > 0 and self.kl_over == "chain"
        return range(self.starts(num_steps).start if told else 0)

    def path_counts(self, num_steps: int) -> int:
        """Weight of the path's KL: 1 for the path itself; for `stopped`, the number of steps it
        stands for; 0 for `renoised` when the chain's KL is added separately."""
        if self.kl_over == "path" or self.path == "last":
            return 1
        return len(self.starts(num_steps)) if self.path == "stopped" else 0

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """By the path, and whose gradient it is if not the reward's own; SEIKO where a surrogate's
        doubt is a bonus at its end."""
        title, paper = _TITLES[self.path]
        if self.reward != "surrogate":
            return title, paper
        if self.surrogate.confidence != "pessimistic" and self.path == "last":
            return "SEIKO", "arXiv:2402.16359"
        return f"{title} through a surrogate", paper

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """Calls of the path, and those that tell a KL."""
        rows, doubled = self.rows_at_once(ranks), 1 + model.is_guided
        copies = rows * (self.renoisings if self.path == "renoised" else 1)
        calls = (copies * doubled,) * (self.last_steps if self.path == "last" else 1)
        if self.alpha == 0:
            return GraphRows(rows, calls, climbed=copies)
        beside = (rows * doubled,) if self.steps_beside(model.num_steps) else ()
        asked = (calls[0] if self.path_counts(model.num_steps) else 0) + sum(beside)
        # From the second step on, a state has a gradient by the steps before it.
        return GraphRows(rows, calls + beside, calls[1:], climbed=copies, reference=asked)

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """A model of few steps, a path longer than the chain."""
        num_steps = model.num_steps
        if model.is_few_step:
            yield (
                "model.num_steps",
                f"draft trains models of 50 steps, given {num_steps}; of a model of few steps "
                "lasro's gradient goes through the steps themselves",
            )
        if self.path == "last" and self.last_steps > num_steps:
            yield (
                "method.last_steps",
                f"must be at most model.num_steps = {num_steps}, given {self.last_steps}",
            )
        yield from super().problems(model, group_size, ranks)
