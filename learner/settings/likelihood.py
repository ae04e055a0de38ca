"""What a user sets of methods that learn to denoise their own good pictures."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.cycles import MicroBatched
from learner.settings.types import Number, Positive, Share, refuse_unused


class Likelihood(MicroBatched):
    """What they share: clean latents from the replay, noised to a random time."""

    fresh: Share = 0.0
    """Share of a batch that comes from the newest policy versions."""


class Gors(Likelihood):
    """Fine-tuning on the policy's own pictures of a high reward, weighted by it."""

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


class Dpo(Likelihood):
    """Diffusion-DPO: a group's better picture against its worse, beside the original model."""

    kind: Literal["dpo"] = "dpo"
    """Which method this is."""
    beta: Positive = 5000.0
    """Sharpness of the preference, of squared errors that are means over the latent."""
