"""What each process of a run is made of: config in, worker out.

Called inside the actors, so the heavy imports happen there, and only where they are needed: a
reward server loads no UNet, a sampler no VAE, the controller no torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.run.gpu_share import hide_unbooked, keep_to_share, score_in_tf32
from deploy.run.parts import RunParts
from deploy.run.policy_build import device_of, policy_of
from deploy.run.progress import STARTING
from deploy.settings.prompt_sources import prompt_list, prompt_set

if TYPE_CHECKING:
    from actors.worker import SamplerWorker
    from reward_servers.base import RewardModel
    from reward_servers.server import RewardServer

_SLOW_ADVICE = (
    "if it was only slow, raise limits.stall_s: one batch may take half of it, and the first of a "
    "process twice all of it"
)
"""Of `RunConfig.hold_s` and the first batch of a `Watch`."""


def end_process() -> None:
    """Ends an actor that hangs, from another thread; the fleet puts a new one in its place."""
    os._exit(1)


def sampler(parts: RunParts, board: Any, owner: str) -> SamplerWorker:
    """A sampler worker; its policy starts as version 0, which is the untouched one."""
    hide_unbooked(parts.config.actors.num_gpus)
    import torch

    from actors.host import BoardWeights
    from actors.prompts import PromptSource
    from actors.worker import SamplerWorker, WorkerSettings
    from learner.policy.components import PipelineFolder

    config = parts.config
    torch.set_num_threads(config.actors.threads)
    keep_to_share(config.actors.num_gpus)
    prompts = prompt_list(config.prompts, config.seed)
    policy = policy_of(
        config,
        PipelineFolder.of(config.model),
        config.actors.group_size,
        device_of(config.actors.num_gpus),
        prompts=prompts,
    )
    return SamplerWorker(
        parts.replay,
        PromptSource(prompts, run_seed=config.seed),
        BoardWeights(board),
        policy,
        owner=owner,
        settings=WorkerSettings(
            groups_per_batch=config.actors.groups_per_batch,
            lease_s=config.actors.lease_s,
            hold_s=config.hold_s,
            slow_advice=_SLOW_ADVICE,
            version_timeout_s=config.limits.stall_s,
        ),
        loaded_version=0,
        on_hang=end_process,
    )


def reward_server(parts: RunParts, owner: str) -> RewardServer:
    """A server of all configured rewards, with the VAE that decodes for them."""
    hide_unbooked(parts.config.scoring.num_gpus)
    import torch

    from deploy.fleet.reward_pools import pooled_rewards
    from deploy.run.metrics import RewardMetrics
    from learner.policy.components import PipelineFolder, decode_latents
    from learner.policy.precision import round_frozen
    from reward_servers.metadata import informed
    from reward_servers.noisy import NoisyReward
    from reward_servers.probe import scored_before
    from reward_servers.registry import build_reward
    from reward_servers.server import RewardServer, ServerSettings

    config = parts.config
    torch.set_num_threads(config.scoring.threads)
    keep_to_share(config.scoring.num_gpus)
    score_in_tf32(config.scoring.num_gpus)
    precision = config.model.vae_precision
    vae = PipelineFolder.of(config.model).vae(device_of(config.scoring.num_gpus))
    round_frozen(vae, precision, trained=True)
    pools = pooled_rewards(config)
    for pool in pools.values():
        pool.wait(config.limits.stall_s)
    table = prompt_set(config.prompts, config.seed).table
    rewards: dict[str, RewardModel] = {
        name: pools[name] if name in pools else informed(build_reward(r.kind, r.args), table)
        for name, r in config.rewards.items()
    }
    rewards |= {
        name: NoisyReward(rewards[name], r.noise, name=name, seed=config.seed)
        for name, r in config.rewards.items()
        if r.noise > 0
    }
    return RewardServer(
        parts.replay,
        lambda latents_BCHW: decode_latents(vae, torch.from_numpy(latents_BCHW), precision),
        rewards,
        owner=owner,
        scored_before=lambda: scored_before(parts.replay),
        settings=ServerSettings(
            max_batch=config.images_per_decode,
            timeout_s=config.scoring.timeout_s,
            lease_s=config.scoring.lease_s,
            hold_s=config.hold_s,
            slow_advice=_SLOW_ADVICE,
            commit_s=config.limits.stall_s,
            outage_s=config.scoring.outage_s,
        ),
        on_hang=end_process,
        called=RewardMetrics(config.name).called,
    )


class LearnerRank:
    """One rank of the learner, for the actor that hosts it: build, run, tell, stop."""

    def __init__(self, parts: RunParts, rank: int, board: Any) -> None:
        import threading

        self._parts = parts
        self._rank = rank
        self._board = board
        self._published: tuple[int, list[Any]] | None = None
        self._stopping = threading.Event()
        self._trainer: Any = None
        self._method: Any = None

    def __repr__(self) -> str:
        return f"learner-{self._rank}"

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met: this host, and a port that is free now."""
        import socket

        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def run(self, address: str, port: int, *, resume: bool) -> bool:
        """Trains to the end; False when it was stopped before.

        Raises:
            NotSharedError: this node has not got the run's folder, with its checkpoints.
        """
        self._parts.folder.check(f"the learner's rank {self._rank}")
        hide_unbooked(self._parts.config.learner.num_gpus)
        from deploy.run.build_method import build_method
        from deploy.run.metrics import SampleMetrics
        from learner.engine import join_ranks, leave_ranks
        from learner.group_source import GroupSource
        from learner.sample_trace import SampleTrace
        from learner.seat import Seat
        from learner.trainer import Trainer

        config, folder = self._parts.config, self._parts.folder.path
        trace = SampleTrace(folder, self._rank) if config.learner.sample_trace else None
        source = GroupSource(
            replay=self._parts.replay,
            rewards={name: reward.weight for name, reward in config.rewards.items()},
            group_size=config.actors.group_size,
            max_open=config.replay.max_pending_records // config.actors.group_size,
            max_staleness=config.max_staleness,
            capacity_groups=config.replay.capacity_groups,
            stall_s=config.limits.stall_s,
            standardised=frozenset(
                name for name, reward in config.rewards.items() if reward.scale == "standard"
            ),
            max_records=config.max_records,
            stopping=self._stopping,
            fetched=SampleMetrics(config.name).fetched,
            **({} if trace is None else {"told": trace.told, "drawn": trace.drawn}),
        )
        join_ranks(self._rank, config.learner.ranks, address, port, timeout_s=config.limits.stall_s)
        seat = Seat(config.seed, self._rank, config.learner.ranks)
        self._method = build_method(config, source, seat)
        self._trainer = Trainer(
            self._method,
            self._publish,
            folder=folder,
            rank=self._rank,
            resume=resume,
            every=config.learner.checkpoint_every_cycles,
            keep=config.learner.keep_checkpoints,
            stopping=self._stopping,
        )
        trained = self._trainer.run()
        # Not after an error: NCCL would wait there for siblings that wait for this one, and nobody
        # would learn of it. The driver ends them all.
        leave_ranks()
        return trained

    def _publish(self, version: int, weights: dict[str, np.ndarray]) -> None:
        import ray

        if self._published is None:
            # References of an earlier life of this rank died with it.
            ray.get(self._board.rewind.remote(version))
        self._published = version, [ray.put(weights)]
        ray.get(self._board.publish.remote(*self._published))

    def published(self) -> list[Any]:
        """References to the newest version's weights."""
        return [] if self._published is None else self._published[1]

    def republish(self) -> None:
        """Tells a board that has lost its memory the newest version again."""
        import ray

        if self._published is not None:
            ray.get(self._board.publish.remote(*self._published))

    def stop(self) -> None:
        """Ends `run` as soon as all that it has done can be saved, with a checkpoint."""
        self._stopping.set()

    def report(self) -> dict[str, Any]:
        """Where it is, and the metric rows since the last call."""
        if self._method is None or self._trainer is None:
            return {"stage": STARTING, "cycle": 0, "latest": {}, "rows": []}
        journal = self._method.journal
        return {
            "stage": journal.stage,
            "cycle": journal.cycle,
            "latest": dict(journal.latest),
            "seconds": dict(journal.seconds),
            "flops": dict(journal.flops),
            "published": self._trainer.published,
            "rows": journal.drain(),
        }
