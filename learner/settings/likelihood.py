"""What a user sets of methods that learn to denoise their own good pictures."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from learner.settings.cycles import Finding, MicroBatched, lone_pictures
from learner.settings.graph_rows import GraphRows
from learner.settings.model import Model
from learner.settings.types import Number, Positive, Share, refuse_unused


class Likelihood(MicroBatched):
    """What they share: clean latents from the replay, noised to a random time."""

    fresh: Share = 0.0
    """Share of a batch that comes from the newest policy versions."""


class Gors(Likelihood):
    """Fine-tuning on the policy's own pictures of a high reward, weighted by it."""

    holds_reference: ClassVar[bool] = False

    kind: Literal["gors"] = "gors"
    """Which method this is."""
    threshold: Number | None = None
    """Reward from which a picture is learned from; null: by `kept_share`."""
    kept_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the replay that is, the best of it, without a threshold; of equal rewards the
    newest."""

    @model_validator(mode="after")
    def _one_bar(self) -> Self:
        if self.threshold is not None:
            refuse_unused(
                self, ["kept_share"], "a threshold says which pictures are kept", "drop threshold"
            )
        return self

    def distils(self, is_few_step: bool) -> bool:
        """A model of few steps; another learns by its squared error."""
        return is_few_step

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """Always these."""
        return "GORS", "arXiv:2307.06350"

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """One call; good pictures of a consistency model are distilled, as an anchor is."""
        rows = self.rows_at_once(ranks)
        distilled = rows if self.distils(model.is_few_step) else 0
        asked = (1 + (model.guidance_scale != 1)) * distilled
        return GraphRows(rows, (rows,), reference=asked, target=distilled)

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """A model of few steps without its teacher."""
        if self.distils(model.is_few_step) and model.teacher is None:
            yield (
                "model.teacher",
                "is missing: of a model of few steps gors distils from it; name a multi-step "
                "pipeline",
            )
        yield from super().problems(model, group_size, ranks)


class Dpo(Likelihood):
    """Diffusion-DPO: a group's better picture against its worse, beside the original model."""

    rows_per_example: ClassVar[int] = 2

    kind: Literal["dpo"] = "dpo"
    """Which method this is."""
    beta: Positive = 5000.0
    """Sharpness of the preference, of squared errors that are means over the latent."""

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """Always these."""
        return "Diffusion-DPO", "arXiv:2311.12908"

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """Both of a pair, of policy and original model."""
        rows = self.rows_at_once(ranks)
        both = self.rows_per_example * rows
        return GraphRows(rows, (both,), reference=both)

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """A model of few steps, groups of one."""
        if model.is_few_step:
            yield (
                "model.num_steps",
                f"dpo trains models of 50 steps, given {model.num_steps}: its loss is that of a "
                "denoiser; prefer pairs of few-step models by pso",
            )
        yield from lone_pictures(group_size)
        yield from super().problems(model, group_size, ranks)
