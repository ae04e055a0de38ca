"""What a user sets of methods that train on the newest policy's own steps: DDPO, RLCM, PSO."""

from typing import Annotated, Literal

from pydantic import Field

from learner.settings.cycles import MicroBatched
from learner.settings.model import FEW_STEPS
from learner.settings.types import Count, NonNegative, Positive


class OnPolicy(MicroBatched):
    """What they share: a cycle trains, once, on what its own policy version sampled."""

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


class Pso(OnPolicy):
    """Pairwise sample optimisation: steps to the better picture of a group against the worse."""

    kind: Literal["pso"] = "pso"
    """Which method this is."""
    beta: Positive = 50.0
    """Sharpness of the preference."""
    ratio_clip: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """How far a step's ratio to the original model may move before it no longer counts."""
