"""Which rewards each kind of process computes itself."""

from typing import Literal, get_args

from deploy.settings.run_config import RunConfig
from deploy.settings.sections import Metric, Reward

Role = Literal["scoring", "evaluation", "learner"]
SCORERS: tuple[Role, ...] = get_args(Role)
"""Sections of processes that hold rewards."""


def rewards_of(config: RunConfig, role: Role) -> dict[str, Reward | Metric]:
    """Those that a process of a role computes itself."""
    if role == "learner":
        climbs = config.method.differentiates_rewards
        return {name: each for name, each in config.rewards.items() if climbs and each.weight != 0}
    own = {name: each for name, each in config.rewards.items() if each.fleet is None}
    return {**own, **config.evaluation.rewards} if role == "evaluation" else {**own}
