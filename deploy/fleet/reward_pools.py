"""Rewards with fleets of their own, under Ray: who scores, how they are found and called."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError

from actors.fleet import WorkerHost
from reward_servers.pool import MemberLostError, PooledReward, UnavailableError

if TYPE_CHECKING:
    from deploy.build import Plan
    from deploy.run_config import RunConfig
    from reward_servers.base import Outcome
    from reward_servers.pool import RewardWorker

_LOOK_EVERY_S = 2.0
_CALLS = "score"


def role_of(reward: str) -> str:
    """The role of a reward's fleet, as `deploy.fleet` takes it."""
    return f"rewards.{reward}"


def fleet_name(reward: str) -> str:
    """The name that its actors' names begin with."""
    return f"reward-{reward}"


class RewardHost(WorkerHost):
    """A `WorkerHost` that can be handed pictures.

    Batches wait in a line of their own, and hold up no question.
    """

    concurrency_groups: ClassVar[Mapping[str, int]] = {_CALLS: 1}

    @ray.method(concurrency_group=_CALLS)
    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> list[Outcome]:
        """`RewardWorker.score`.

        Raises:
            UnavailableError: it is ending, or not built yet.
        """
        worker: Any = self.worker
        if worker is None:
            raise UnavailableError(f"{self!r} is being built")
        return worker.score(images_BHWC, prompts)


class NamedMembers:
    """The actors of a reward's fleet in this process's namespace."""

    def __init__(self, reward: str) -> None:
        self._pattern = re.compile(re.escape(fleet_name(reward)) + r"-\d+")
        self._names: list[str] = []
        self._looked_at = -_LOOK_EVERY_S

    def names(self) -> list[str]:
        """Those that were there when it was last looked, every two seconds."""
        if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._names = sorted(filter(self._pattern.fullmatch, ray.util.list_named_actors()))
            self._looked_at = time.monotonic()
        return self._names

    def score(
        self, name: str, images_BHWC: np.ndarray, prompts: Sequence[str], timeout_s: float
    ) -> list[Outcome]:
        """See `Members`."""
        try:
            actor = ray.get_actor(name)
        except ValueError as error:
            raise UnavailableError(f"{name} is gone") from error
        asked = actor.score.remote(images_BHWC, list(prompts))
        try:
            return ray.get(asked, timeout=timeout_s)
        except GetTimeoutError as error:
            ray.cancel(asked)  # it may still stand in line, for nobody
            raise TimeoutError(f"{name} did not answer within {timeout_s:.0f} s") from error
        except (ActorDiedError, ActorUnavailableError) as error:
            raise MemberLostError(f"{name} was lost with {len(prompts)} pictures") from error


def reward_worker(plan: Plan, reward: str, owner: str) -> RewardWorker:
    """A member of a reward's fleet; it is asked about held-out prompts, too."""
    import torch

    from deploy.prompt_sources import prompt_set
    from reward_servers.metadata import informed
    from reward_servers.pool import RewardWorker
    from reward_servers.registry import build_reward

    config = plan.config
    torch.set_num_threads(config.scoring.threads)
    table = {
        **prompt_set(config.evaluation.prompts, config.evaluation.seed).table,
        **prompt_set(config.prompts, config.seed).table,
    }
    model = informed(build_reward(config.rewards[reward].kind, config.rewards[reward].args), table)
    return RewardWorker(model, name=reward, owner=owner, timeout_s=config.scoring.timeout_s)


def pooled_rewards(config: RunConfig) -> dict[str, PooledReward]:
    """Those rewards of a run that have fleets of their own, for whoever is beside them in Ray."""
    # Before that of the server that asks, which knows no reason.
    timeout_s = 0.9 * config.scoring.timeout_s
    return {
        name: PooledReward(name, NamedMembers(name), timeout_s=timeout_s)
        for name, reward in config.rewards.items()
        if reward.fleet
    }
