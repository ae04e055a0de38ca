"""The method of the learner that a config asks for, on one rank."""

from typing import Any

from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import RunConfig
from learner.group_source import GroupSource
from learner.methods.build import BUILDERS
from learner.methods.parts import Given
from learner.seat import Seat
from learner.trainer import Method
from reward_servers.metadata_module import informed_module
from reward_servers.registry import build_reward


def build_method(config: RunConfig, source: GroupSource, seat: Seat) -> Method:
    """Ready for the trainer."""
    prompts, rewards = prompt_set(config.prompts, config.seed), dict[str, Any]()
    if config.method.differentiates_rewards:
        trained = {name: r for name, r in config.rewards.items() if r.weight != 0}
        for name, reward in trained.items():
            model: Any = build_reward(reward.kind, reward.args)
            rewards[name] = informed_module(model, prompts.table)
    given = Given(
        config.model,
        config.learner,
        source,
        prompts.prompts,
        seat,
        rewards=rewards,
        shared_initial_noise=config.actors.fixed_initial_noise,
    )
    return BUILDERS[config.method.kind](config.method, given)
