"""What each process of a run is made of: config in, worker out.

Called inside the actors, so the heavy imports happen there, and only where they are needed: a
reward server loads no UNet, a sampler no VAE, the controller no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from buffer.replay import Replay
from deploy.progress import STARTING
from deploy.prompt_sources import prompt_list, prompt_set
from deploy.run_config import RunConfig
from learner.draft_settings import Draft
from learner.on_policy_settings import OnPolicy
from learner.sqdf_settings import Sqdf

if TYPE_CHECKING:
    from actors.rollout import FewStepPolicy, ManyStepPolicy
    from actors.worker import SamplerWorker
    from learner.policy.components import PipelineFolder
    from reward_servers.base import RewardModel
    from reward_servers.server import RewardServer


_BOARD_TIMEOUT_S = 60.0
WeightsSource = list[Any] | Path
"""References that are the whole policy together, none for the untouched one; or a file."""


@dataclass(frozen=True)
class Plan:
    """What every builder needs; travels to the actors.

    Args:
        replay: picklable; opens its own connection in the process that unpickles it.
        folder: of the run, seen by learner and evaluator.
    """

    config: RunConfig
    replay: Replay
    folder: Path


def device_of(num_gpus: float) -> str:
    """Where a process that booked so many GPUs computes: Ray shows it no other."""
    return "cuda" if num_gpus > 0 else "cpu"


def end_process() -> None:
    """Ends an actor that hangs, from another thread; the fleet puts a new one in its place."""
    os._exit(1)


def policy_of(
    config: RunConfig,
    pipeline: PipelineFolder,
    group_size: int,
    device: str = "cpu",
    *,
    only_clean: bool = False,
    prompts: Sequence[str] | None = None,
) -> FewStepPolicy | ManyStepPolicy:
    """The policy as it is before training, ready to sample and to take new weights.

    It can tell its drift from the untouched network.

    Args:
        only_clean: keep none of the states of a many-step chain but its last.
        prompts: all that it will draw, for text encoders that retire; None: not known.
    """
    from actors.rollout import FewStepPolicy, ManyStepPolicy
    from actors.sampling import kept_states
    from learner.policy.denoiser import Denoiser
    from learner.policy.flops import FlopMeter, Metered
    from learner.policy.views import SamplingPolicy, with_lora
    from learner.states import starting_part, strata_of
    from learner.transitions import trained_strata

    base: Any = pipeline.unet(config.model.attention).requires_grad_(False)
    base.to(device)  # before others share its tensors
    policy = SamplingPolicy(base, config.model, seed=config.seed)
    num_steps, method, meter = config.model.num_steps, config.method, FlopMeter()
    denoiser = partial(Denoiser.of, model=config.model)
    parts: dict[str, Any] = {
        "network": Metered(denoiser(policy.unet), meter),
        "meter": meter,
        "encode": pipeline.prompt_encoder(device, prompts),
        "take": policy.load,
        "schedule": pipeline.schedule,
        "latent_shape": pipeline.latent_shape,
        "group_size": group_size,
        "num_steps": num_steps,
        "guidance_scale": config.model.guidance_scale,
        "shared_initial_noise": config.actors.fixed_initial_noise,
        "device": device,
        "base": denoiser(base),
    }
    if config.model.is_few_step:
        return FewStepPolicy(
            **parts,
            kind=pipeline.few_steps(),
            guidance_dim=base.config["time_cond_proj_dim"],
            num_scored=config.rewarded_steps,
        )
    if only_clean:
        return ManyStepPolicy(**parts, keep=lambda seed: ())
    if not isinstance(method, Sqdf):
        kept = None
        if isinstance(method, OnPolicy):
            kept = trained_strata(method, num_steps)
        elif isinstance(method, Draft) and method.starts(num_steps).start < num_steps:
            kept = starting_part(method, num_steps)
        # The clean latent is kept in any case.
        return ManyStepPolicy(
            **parts, keep=lambda seed: kept_states(seed, kept) if kept is not None else ()
        )
    strata, consistency = strata_of(method, num_steps), None
    if method.states.score_clean:
        assert method.clean.lora is not None
        consistency = Metered(denoiser(with_lora(base, method.clean.lora)), meter)
    return ManyStepPolicy(
        **parts,
        keep=lambda seed: kept_states(seed, strata),
        consistency=consistency,
        reference=Metered(denoiser(base), meter) if method.states.store_reference else None,
    )


def sampler(plan: Plan, board: Any, owner: str) -> SamplerWorker:
    """A sampler worker; its policy starts as version 0, which is the untouched one."""
    import torch

    from actors.host import BoardWeights
    from actors.prompts import PromptSource
    from actors.worker import SamplerWorker, WorkerSettings
    from learner.policy.components import PipelineFolder

    config = plan.config
    torch.set_num_threads(config.actors.threads)
    prompts = prompt_list(config.prompts, config.seed)
    policy = policy_of(
        config,
        PipelineFolder.of(config.model),
        config.actors.group_size,
        device_of(config.actors.num_gpus),
        prompts=prompts,
    )
    return SamplerWorker(
        plan.replay,
        PromptSource(prompts, run_seed=config.seed),
        BoardWeights(board),
        policy,
        owner=owner,
        settings=WorkerSettings(
            groups_per_batch=config.actors.groups_per_batch,
            lease_s=config.actors.lease_s,
            hold_s=2 * config.limits.stall_s,
            version_timeout_s=config.limits.stall_s,
        ),
        loaded_version=0,
        on_hang=end_process,
    )


def reward_server(plan: Plan, owner: str) -> RewardServer:
    """A server of all configured rewards, with the VAE that decodes for them."""
    import torch

    from deploy.fleet.reward_pools import pooled_rewards
    from deploy.metrics import RewardMetrics
    from learner.policy.components import PipelineFolder, decode_latents
    from reward_servers.metadata import informed
    from reward_servers.noisy import NoisyReward
    from reward_servers.probe import scored_before
    from reward_servers.registry import build_reward
    from reward_servers.server import RewardServer, ServerSettings

    config = plan.config
    torch.set_num_threads(config.scoring.threads)
    vae = PipelineFolder.of(config.model).vae(device_of(config.scoring.num_gpus))
    pools = pooled_rewards(config)
    for pool in pools.values():
        pool.wait(config.limits.stall_s)
    table = prompt_set(config.prompts, config.seed).table
    rewards: dict[str, RewardModel] = {
        name: pools[name] if name in pools else informed(build_reward(r.kind, r.args), table)
        for name, r in config.rewards.items()
    }
    rewards |= {
        name: NoisyReward(rewards[name], r.noise, seed=config.seed)
        for name, r in config.rewards.items()
        if r.noise > 0
    }
    return RewardServer(
        plan.replay,
        lambda latents_BCHW: decode_latents(vae, torch.from_numpy(latents_BCHW)),
        rewards,
        owner=owner,
        scored_before=lambda: scored_before(plan.replay),
        settings=ServerSettings(
            max_batch=config.images_per_decode,
            timeout_s=config.scoring.timeout_s,
            lease_s=config.scoring.lease_s,
            hold_s=2 * config.limits.stall_s,
            outage_s=config.scoring.outage_s,
        ),
        on_hang=end_process,
        called=RewardMetrics(config.name).called,
    )


class LearnerRank:
    """One rank of the learner, for the actor that hosts it: build, run, tell, stop."""

    def __init__(self, plan: Plan, rank: int, board: Any) -> None:
        import threading

        self._plan = plan
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
        """Trains to the end; False when it was stopped before."""
        if self._plan.config.learner.num_gpus == 0:
            # DeepSpeed computes on any GPU that it sees, and Ray hides none from this process.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        from deploy.build_method import build_method
        from deploy.metrics import SampleMetrics
        from learner.engine import join_ranks, leave_ranks
        from learner.groups import GroupSource
        from learner.sample_trace import SampleTrace
        from learner.seat import Seat
        from learner.trainer import Trainer

        config = self._plan.config
        trace = SampleTrace(self._plan.folder, self._rank) if config.learner.sample_trace else None
        source = GroupSource(
            replay=self._plan.replay,
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
        try:
            seat = Seat(config.seed, self._rank, config.learner.ranks)
            self._method = build_method(config, source, seat)
            self._trainer = Trainer(
                self._method,
                self._publish,
                folder=self._plan.folder,
                rank=self._rank,
                resume=resume,
                every=config.learner.checkpoint_every_cycles,
                keep=config.learner.keep_checkpoints,
                stopping=self._stopping,
            )
            return self._trainer.run()
        finally:
            leave_ranks()

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
        """Ends `run` after the cycle in hand, with a checkpoint."""
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


class EvaluatorHost:
    """The evaluator inside its actor: takes references to weights, builds itself when asked."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._evaluator: Any = None

    def evaluate(self, source: WeightsSource, pictures: Path) -> dict[str, float]:
        """`Evaluator.evaluate` of these weights."""
        return self._get().evaluate(_weights(source), pictures)

    def evaluate_newest(
        self, board: Any, at_least: int, folder: Path, *, keep: bool
    ) -> tuple[int, dict[str, float]] | None:
        """Version and metrics of the newest policy on the board; pictures go to `folder`.

        None where the board's newest is older than `at_least`, or its weights died with a learner
        that will publish them again.

        Args:
            keep: save the weights too.
        """
        import ray
        from ray.exceptions import RayError

        from deploy.evaluation.kept import save_weights
        from deploy.run_files import cycle_name, kept_file, pictures_file

        try:
            version, refs = ray.get(board.weights.remote(at_least), timeout=_BOARD_TIMEOUT_S)
            weights = _weights(refs)
        except (RayError, LookupError) as error:
            logging.getLogger(__name__).info("no policy to evaluate: %s", error)
            return None
        metrics = self._get().evaluate(weights, pictures_file(folder, cycle_name(version)))
        if keep and weights is not None:
            save_weights(weights, kept_file(folder, version))
        return version, metrics

    def export(self, source: WeightsSource, folder: Path) -> str:
        """`Evaluator.export` of these weights."""
        return self._get().export(_weights(source), folder)

    def _get(self) -> Any:
        if self._evaluator is None:
            from deploy.evaluation.evaluator import Evaluator
            from deploy.fleet.reward_pools import pooled_rewards

            self._evaluator = Evaluator(self._config, pooled_rewards(self._config))
        return self._evaluator


def _weights(source: WeightsSource) -> dict[str, np.ndarray] | None:
    if isinstance(source, Path):
        from safetensors.numpy import load_file

        return load_file(source)
    import ray

    return {name: array for part in ray.get(source) for name, array in part.items()} or None
