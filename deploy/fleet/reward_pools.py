"""Rewards with fleets of their own, under Ray: who scores, how they are found and called."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import ray
from ray.exceptions import GetTimeoutError

from actors.host import WorkerHost
from actors.slot import LOST, value_or_none
from reward_servers.pool import MemberLostError, PooledReward, UnavailableError

if TYPE_CHECKING:
    from deploy.run.parts import RunParts
    from deploy.settings.run_config import RunConfig
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


@dataclass
class _Member:
    """An actor, and what it was asked until it was seen at work."""

    actor: Any
    asked: ray.ObjectRef[Any] | None

    def look(self) -> None:
        if self.asked is None or not ray.wait([self.asked], timeout=0)[0]:
            return
        stats = value_or_none(self.asked)
        is_built = stats is not None and len(stats) > 1  # until then they are its owner
        self.asked = None if is_built else self.actor.stats.remote()


class NamedMembers:
    """The actors of a reward's fleet in this process's namespace that are at work.

    One for which Ray still looks for a place would let pictures wait until they are failed.
    """

    def __init__(self, reward: str) -> None:
        self._pattern = re.compile(re.escape(fleet_name(reward)) + r"-\d+")
        self._members: dict[str, _Member] = {}
        self._looking = threading.Lock()
        self._looked_at = -_LOOK_EVERY_S

    def names(self) -> list[str]:
        """Those that were at work when it was last looked, every two seconds."""
        with self._looking:
            if time.monotonic() - self._looked_at >= _LOOK_EVERY_S:
                self._look()
                self._looked_at = time.monotonic()
            return sorted(name for name, it in self._members.items() if it.asked is None)

    def score(
        self, name: str, images_BHWC: np.ndarray, prompts: Sequence[str], timeout_s: float
    ) -> list[Outcome]:
        """See `Members`."""
        member = self._members.get(name)
        if member is None or _actor_named(name) != member.actor:
            raise UnavailableError(f"{name} is gone")
        asked = member.actor.score.remote(images_BHWC, list(prompts))
        try:
            return ray.get(asked, timeout=timeout_s)
        except GetTimeoutError as error:
            ray.cancel(asked)  # it may still stand in line, for nobody
            raise TimeoutError(f"{name} did not answer within {timeout_s:.0f} s") from error
        except LOST as error:
            raise MemberLostError(f"{name} was lost with {len(prompts)} pictures") from error

    def _look(self) -> None:
        members: dict[str, _Member] = {}
        for name in filter(self._pattern.fullmatch, ray.util.list_named_actors()):
            if (actor := _actor_named(name)) is None:
                continue
            known = self._members.get(name)
            is_same = known is not None and known.actor == actor
            members[name] = known if known and is_same else _Member(actor, actor.stats.remote())
        for member in members.values():
            member.look()
        self._members = members


def _actor_named(name: str) -> Any:
    """None where there is none any more."""
    try:
        return ray.get_actor(name)
    except ValueError:
        return None


def reward_worker(parts: RunParts, reward: str, owner: str) -> RewardWorker:
    """A member of a reward's fleet; it is asked about held-out prompts, too."""
    import torch

    from deploy.run.gpu_share import keep_to_share, score_in_tf32
    from deploy.settings.prompt_sources import prompt_set
    from reward_servers.metadata import informed
    from reward_servers.pool import RewardWorker
    from reward_servers.registry import build_reward

    config, fleet = parts.config, parts.config.rewards[reward].fleet
    num_gpus = fleet.num_gpus if fleet else 0.0
    torch.set_num_threads(config.scoring.threads)
    keep_to_share(num_gpus)
    score_in_tf32(num_gpus)
    table = {
        **prompt_set(config.evaluation.prompts, config.evaluation.seed).table,
        **prompt_set(config.prompts, config.seed).table,
    }
    model = informed(build_reward(config.rewards[reward].kind, config.rewards[reward].args), table)
    return RewardWorker(
        model,
        name=reward,
        owner=owner,
        timeout_s=config.scoring.timeout_s,
        has_gpu=num_gpus > 0,
    )


def pooled_rewards(config: RunConfig) -> dict[str, PooledReward]:
    """Those rewards of a run that have fleets of their own, for whoever is beside them in Ray."""
    # Before that of the server that asks, which knows no reason.
    timeout_s = 0.9 * config.scoring.timeout_s
    return {
        name: PooledReward(name, NamedMembers(name), timeout_s=timeout_s)
        for name, reward in config.rewards.items()
        if reward.fleet
    }
