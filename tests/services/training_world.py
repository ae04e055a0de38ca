"""A whole learner over a real replay, in threads, that tests stop, kill and resume.

Samplers and reward servers are plain threads here. One group a batch and one record a decode,
so that a run is the same bit by bit whoever does which part of the work.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.prompts import PromptSource
from actors.rollout import FewStepPolicy, ManyStepPolicy
from actors.sampling import kept_states
from actors.worker import SamplerWorker
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from buffer.sharded_replay import ShardedReplay, connect_replay
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.methods.alternation import Alternating
from learner.methods.build import BUILDERS
from learner.methods.parts import Given
from learner.policy.board import PolicyBoard, Weights
from learner.policy.components import PipelineFolder, decode_latents
from learner.policy.denoiser import Denoiser
from learner.policy.trainable import load_arrays, trainable_unet
from learner.seat import Seat
from learner.settings.cycles import Cycles
from learner.settings.lasro import Lasro
from learner.settings.learner import Learner
from learner.settings.likelihood import Dpo
from learner.settings.model import Model
from learner.settings.on_policy import Ppo, Pso
from learner.settings.sqdf import Sqdf
from learner.settings.types import Precision
from learner.states import strata_of
from learner.trainer import Trainer
from reward_servers.base import Scored
from reward_servers.server import RewardServer, ServerSettings

PROMPTS = ["a red circle", "a blue square", "a green heart", "two red squares", "a blue circle"]
MEMBERS, STEPS, SEED = 2, 2, 11
LASRO = Lasro.model_validate(
    {
        "surrogate": {"backbone": "conv", "heads": 2, "pessimism": 0.5, "batch_groups": 2},
        "pretrain": {"groups": 6, "max_steps": 4, "check_every_steps": 2, "holdout_share": 0.34},
        "cycles": 4,
        "groups_per_cycle": 2,
        "policy_steps": 2,
        "surrogate_steps": 2,
        "policy_batch": 2,
        "learning_rate": 1e-3,
        "anchor": {"ratio": 0.5, "batch": 2},
        "weight_average": 0.9,
    }
)
RLCM = Ppo.model_validate(
    {
        "cycles": 4,
        "groups_per_cycle": 3,
        "policy_steps": 2,
        "policy_batch": 4,
        "learning_rate": 1e-3,
        "alpha": 0.1,
    }
)
PSO = Pso.model_validate(
    {
        "cycles": 4,
        "groups_per_cycle": 3,
        "policy_steps": 2,
        "policy_batch": 2,
        "learning_rate": 1e-3,
    }
)
TICKETS = LASRO.round_ends[-1]


class Killed(Exception):  # noqa: N818  not an error but the end of a process
    """Ends a learner in the midst of its work."""


class Brightness:
    """The mean pixel, and how many pictures it was asked for.

    Args:
        refused: of this prompt, the first picture that comes cannot be scored, now or later.
        flat: every picture has the same score.
        flat_for: pictures of this prompt have.
    """

    def __init__(
        self, refused: str | None = None, *, flat: bool = False, flat_for: str | None = None
    ) -> None:
        self._flat = flat
        self._flat_for = flat_for
        self.pictures = 0
        self._refused = refused
        self._picture: bytes | None = None
        self._lock = threading.Lock()

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        with self._lock:
            self.pictures += len(prompts)
            failures = {
                row: "refused"
                for row, (image, prompt) in enumerate(zip(images_BHWC, prompts, strict=True))
                if prompt == self._refused and self._is_refused(image)
            }
        values_B = images_BHWC.mean(axis=(1, 2, 3), dtype=np.float32)
        flat_B = [self._flat or prompt == self._flat_for for prompt in prompts]
        return Scored(np.where(flat_B, np.float32(0), values_B), failures)

    def _is_refused(self, image: np.ndarray) -> bool:
        digest = hashlib.sha256(image.tobytes()).digest()
        self._picture = self._picture or digest
        return digest == self._picture


class BrightnessToClimb(torch.nn.Module):
    """The mean pixel, with a gradient."""

    def forward(self, images_BCHW: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return images_BCHW.flatten(1).mean(dim=1)

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return images_BHWC.mean(axis=(1, 2, 3), dtype=np.float32)


class Shelf:
    """A policy board in this process, as a sampler reads it."""

    def __init__(self) -> None:
        self.board = PolicyBoard()

    def latest(self) -> tuple[int, int]:
        return self.board.latest()

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        version, refs = self.board.weights(at_least)
        return version, refs[0]


@dataclass
class Life:
    """What a learner's life left behind."""

    finished: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    published: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def final_weights(self) -> dict[str, np.ndarray]:
        return self.published[max(self.published)]


@dataclass
class World:
    """What outlives a learner: the server or servers, the run's name and folder, the pipelines."""

    url: str
    run: str
    folder: Path
    pipelines: Path
    reward: Brightness = field(default_factory=Brightness)
    settings: Cycles = LASRO
    max_records: int | None = None
    precision: Precision = "fp32"
    other_model: Model | None = None

    def replay(self) -> RedisReplay | ShardedReplay:
        return connect_replay(ReplaySettings(url=self.url, run=self.run, capacity_records=1000))

    @property
    def model(self) -> Model:
        if self.other_model is not None:
            return self.other_model
        if isinstance(self.settings, Dpo | Sqdf):
            base = str(self.pipelines / "base")
            return Model(path=base, num_steps=50, lora_rank=2, lora_alpha=2)
        return Model(
            path=str(self.pipelines / "lcm"),
            teacher=str(self.pipelines / "base"),
            lora_rank=2,
            lora_alpha=2,
            guidance_scale=3.0,
            precision=self.precision,
        )

    def live(
        self,
        *,
        resume: bool = False,
        at_version: Callable[[int, threading.Event], None] = lambda version, stopping: None,
    ) -> Life:
        """One life of learner, samplers and reward servers.

        Args:
            at_version: called when a version was published; may set the event or raise `Killed`.
        """
        life, shelf, stopping = Life(), Shelf(), threading.Event()

        def publish(version: int, weights: dict[str, np.ndarray]) -> None:
            life.published[version] = weights
            shelf.board.publish(version, [weights])
            at_version(version, stopping)

        with self._crew(shelf):
            method = self._method(stopping)
            trainer = Trainer(
                method,
                publish,
                folder=self.folder,
                rank=0,
                resume=resume,
                every=1,
                keep=2,
                stopping=stopping,
            )
            with suppress(Killed):
                life.finished = trainer.run()
        life.rows = method.journal.rows
        return life

    def _method(self, stopping: threading.Event) -> Alternating:
        given = Given(
            self.model,
            Learner(),
            self._source(stopping),
            PROMPTS,
            Seat(SEED),
            rewards={"brightness": BrightnessToClimb()},
        )
        settings: Any = self.settings  # all methods' have a kind, what they share has none
        return BUILDERS[settings.kind](settings, given)

    def complete_groups(self) -> list[int]:
        """Tickets whose every record has its rewards."""
        groups = ScoredGroups(self._source(threading.Event()), steps=range(STEPS), admits=False)
        groups.catch_up()
        return groups.complete(range(TICKETS))

    def _source(self, stopping: threading.Event) -> GroupSource:
        return GroupSource(
            replay=self.replay(),
            rewards={"brightness": 1.0},
            group_size=MEMBERS,
            max_open=3,
            capacity_groups=500,
            stall_s=240,
            max_records=self.max_records,
            stopping=stopping,
        )

    @contextmanager
    def _crew(self, shelf: Shelf) -> Iterator[None]:
        workers = [self._sampler(shelf, i) for i in range(2)]
        workers += [self._reward_server(i) for i in range(2)]
        threads = [threading.Thread(target=worker.run) for worker in workers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
            for thread in threads:
                thread.join()

    def _sampler(self, shelf: Shelf, number: int) -> SamplerWorker:
        return SamplerWorker(
            self.replay(),
            PromptSource(PROMPTS, run_seed=SEED),
            shelf,
            self._policy(),
            owner=f"sampler-{number}",
            loaded_version=0,
        )

    def _policy(self) -> FewStepPolicy | ManyStepPolicy:
        pipeline = PipelineFolder.of(self.model)
        unet: Any = trainable_unet(pipeline, self.model, seed=SEED)
        parts: dict[str, Any] = {
            "network": Denoiser(unet, self.precision),
            "encode": pipeline.prompt_encoder(),
            "take": lambda weights: load_arrays(unet, dict(weights)),
            "schedule": pipeline.schedule,
            "latent_shape": pipeline.latent_shape,
            "group_size": MEMBERS,
            "num_steps": self.model.num_steps,
            "guidance_scale": self.model.guidance_scale,
        }
        if not self.model.is_few_step:
            return ManyStepPolicy(**parts, keep=self._kept)
        return FewStepPolicy(
            **parts,
            kind=pipeline.few_steps(),
            guidance_dim=unet.config.time_cond_proj_dim,
            num_scored=None if isinstance(self.settings, Lasro) else 1,
        )

    def _kept(self, seed: int) -> tuple[int, ...]:
        """States of a long chain that a group keeps."""
        if isinstance(self.settings, Sqdf):
            return kept_states(seed, strata_of(self.settings, self.model.num_steps))
        return ()

    def _reward_server(self, number: int) -> RewardServer:
        vae = PipelineFolder.of(self.model).vae()
        return RewardServer(
            self.replay(),
            lambda latents: decode_latents(vae, torch.from_numpy(latents)),
            {"brightness": self.reward},
            owner=f"reward-{number}",
            settings=ServerSettings(max_batch=STEPS, block_s=0.1),
        )
