"""What a user sets of reward gradients through a sampler's last steps: DRaFT, ReFL, SEIKO."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from learner.settings.cycles import Climbing, MicroBatched
from learner.settings.types import Count, NonNegative, Number, Share, refuse_unused


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
