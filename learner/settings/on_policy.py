"""What a user sets of methods that train on the newest policy's own steps: DDPO, RLCM, PSO."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from learner.settings.cycles import Finding, MicroBatched, lone_pictures
from learner.settings.graph_rows import GraphRows
from learner.settings.model import FEW_STEPS, Model
from learner.settings.types import Count, NonNegative, Positive

_WIDER_THAN_BF16 = 0.01
"""A clip that bfloat16's rounding, 1e-4 to 1e-3 of a ratio's logarithm, does not reach."""


class OnPolicy(MicroBatched):
    """What they share: a cycle trains on what its own policy version sampled, every step of it once
    before any comes again."""

    kept_steps: Count | None = None
    """Steps of a trajectory of many that are trained on, spread over its chain; null: all. Of a
    few-step model those count that add noise, all of them."""

    @property
    def is_on_policy(self) -> bool:
        """A ratio is of one version to the next: older samples would be a wrong gradient."""
        return True

    @property
    def made_up_steps(self) -> int:
        """Of a few-step model, beside those that add noise."""
        return 0

    def steps_trained(self, num_steps: int) -> int:
        """Steps of one trajectory that are trained on."""
        if num_steps > FEW_STEPS:
            return self.kept_steps or num_steps
        return num_steps - 1 + self.made_up_steps

    @property
    def asks_reference(self) -> bool:
        """Whether a policy step asks the original model."""
        return True

    def draws_per_cycle(self, num_steps: int) -> float:
        """Rows are steps, of which a trajectory has several."""
        return super().draws_per_cycle(num_steps) / max(1, self.steps_trained(num_steps))

    def graph_rows(self, model: Model, ranks: int) -> GraphRows:
        """One call, and one of the original model."""
        rows = self.rows_at_once(ranks)
        asked = rows * (1 + model.is_guided) * self.rows_per_example
        return GraphRows(rows, (asked,), reference=asked if self.asks_reference else 0)

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """Steps that a chain has not, or none that adds noise."""
        num_steps = model.num_steps
        if model.is_few_step and self.kept_steps is not None:
            yield (
                "method.kept_steps",
                f"is for models of 50 steps, given {self.kept_steps}; leave it out: of "
                f"{num_steps} steps all that add noise are trained on",
            )
        if not model.is_few_step and self.kept_steps and self.kept_steps > num_steps:
            yield (
                "method.kept_steps",
                f"must be at most model.num_steps = {num_steps}, given {self.kept_steps}",
            )
        if self.steps_trained(num_steps) == 0:
            yield (
                "model.num_steps",
                "is 1, and the only step of a one-step model adds no noise, so it has no "
                "probability to raise; train it with lasro",
            )
        yield from super().problems(model, group_size, ranks)


class Ppo(OnPolicy):
    """Policy gradients of a sampler's own steps: DDPO for models of many steps, RLCM for few."""

    kind: Literal["ppo"] = "ppo"
    """Which method this is."""
    baseline: Literal["group", "batch"] = "group"
    """What a picture's reward is compared with: those of its own prompt, or of the whole cycle."""
    advantage_clip: Positive = 5.0
    """Largest advantage, in deviations."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """How far a step's ratio of probabilities may move before it no longer counts; small, as its
    logarithm is a mean over the latent."""
    alpha: NonNegative = 0.0
    """Weight of the KL to the original model (PPO with a KL); 0: none (DDPO)."""
    kl_reduce: Literal["sum", "mean", "sqdf"] = "mean"
    """Form of that KL; a mean over the latent is of the size of the ratio's logarithm."""
    last_call: bool = False
    """Train on the last call of a few-step model as if noise had been added to its picture, as
    RLCM's code does; no reward depends on that noise (a study of why few steps degenerate)."""

    @property
    def made_up_steps(self) -> int:
        """The last call, where it is asked for."""
        return int(self.last_call)

    @property
    def asks_reference(self) -> bool:
        """For its KL."""
        return self.alpha > 0

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """By the model, and of many steps by the KL."""
        if is_few_step:
            return "RLCM", "arXiv:2404.03673"
        return ("PPO with a KL" if self.alpha else "DDPO"), "arXiv:2305.13301"

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """Groups of one, where they are compared with themselves; a last call of many steps."""
        if self.baseline == "group" and group_size < 2:
            yield (
                "actors.group_size",
                f"must be at least 2, given {group_size}: a picture's reward is compared with "
                "those of its group; or take method.baseline: batch",
            )
        if model.precision != "fp32" and self.ratio_clip < _WIDER_THAN_BF16:
            yield (
                "model.precision",
                f"must be fp32 with method.ratio_clip = {self.ratio_clip:g}, given "
                f"{model.precision}: bfloat16 rounds a step's ratio by more than that from the "
                "second update of a cycle on, and rows of bad pictures would lose their gradient",
            )
        if not model.is_few_step and self.last_call:
            yield "method.last_call", "is for models of few steps; every step of 50 adds noise"
        yield from super().problems(model, group_size, ranks)


class Pso(OnPolicy):
    """Pairwise sample optimisation: steps to the better picture of a group against the worse."""

    rows_per_example: ClassVar[int] = 2

    kind: Literal["pso"] = "pso"
    """Which method this is."""
    beta: Positive = 50.0
    """Sharpness of the preference."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How far a step's ratio to the original model may move before it no longer counts."""

    def title_and_paper(self, is_few_step: bool) -> tuple[str, str]:
        """Always these."""
        return "PSO", "arXiv:2410.03190"

    def problems(self, model: Model, group_size: int, ranks: int) -> Iterator[Finding]:
        """Groups of one."""
        yield from lone_pictures(group_size)
        yield from super().problems(model, group_size, ranks)
