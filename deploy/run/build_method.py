"""Which method of the learner a config asks for, and what it is put together from."""

from typing import Any

from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import RunConfig
from learner.groups import GroupSource
from learner.methods.draft_build import build_draft
from learner.methods.lasro_build import build_lasro
from learner.methods.likelihood_build import build_likelihood
from learner.methods.on_policy_build import build_on_policy
from learner.methods.sqdf_build import build_sqdf
from learner.seat import Seat
from learner.settings.draft import Draft
from learner.settings.lasro import Lasro
from learner.settings.likelihood import Dpo, Gors
from learner.settings.on_policy import Ppo, Pso
from learner.trainer import Method
from reward_servers.metadata_module import informed_module
from reward_servers.registry import build_reward


def build_method(config: RunConfig, source: GroupSource, seat: Seat) -> Method:
    """On one rank, ready for the trainer."""
    method, prompts = config.method, prompt_set(config.prompts, config.seed)
    parts = config.model, config.learner
    known: Any = {"source": source, "prompts": prompts.prompts, "seat": seat}
    if isinstance(method, Ppo | Pso):
        shared = config.actors.fixed_initial_noise
        return build_on_policy(method, *parts, **known, shared_initial_noise=shared)
    if isinstance(method, Gors | Dpo):
        return build_likelihood(method, *parts, **known)
    if isinstance(method, Lasro):
        return build_lasro(method, *parts, **known)
    rewards: dict[str, Any] = {}
    if method.differentiates_rewards:
        trained = {name: r for name, r in config.rewards.items() if r.weight != 0}
        for name, reward in trained.items():
            model: Any = build_reward(reward.kind, reward.args)
            rewards[name] = informed_module(model, prompts.table)
    if isinstance(method, Draft):
        return build_draft(method, *parts, **known, rewards=rewards)
    return build_sqdf(method, *parts, **known, rewards=rewards)
