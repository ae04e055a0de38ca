"""A whole learner over a real replay, stopped, killed and resumed.

Samplers and reward servers are plain threads here. One group a batch and one record a decode,
so that a run is the same bit by bit whoever does which part of the work.
"""

import hashlib
import json
import os
import socket
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.prompts import PromptSource
from actors.rollout import FewStepPolicy
from actors.worker import SamplerWorker
from buffer.embedded import EmbeddedServer
from buffer.redis_replay import RedisReplay, ReplaySettings
from learner.checkpoint import newest
from learner.engine import join_ranks, leave_ranks
from learner.groups import GroupSource, ScoredGroups
from learner.methods.lasro_build import build_lasro
from learner.policy.board import PolicyBoard, Weights
from learner.policy.components import PipelineFolder, decode_latents
from learner.policy.trainable import load_arrays, trainable_unet
from learner.seat import Seat
from learner.settings import Lasro, Learner, Model
from learner.surrogate_training import GroupBatch, SurrogateTrainer
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
TICKETS = LASRO.pretrain.groups + LASRO.cycles * LASRO.groups_per_cycle

pytestmark = pytest.mark.redis


class Killed(Exception):  # noqa: N818  not an error but the end of a process
    """Ends a learner in the midst of its work."""


class Brightness:
    """The mean pixel, and how many pictures it was asked for.

    Args:
        refused: of this prompt, the first picture that comes cannot be scored, now or later.
    """

    def __init__(self, refused: str | None = None) -> None:
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
        return Scored(images_BHWC.mean(axis=(1, 2, 3), dtype=np.float32), failures)

    def _is_refused(self, image: np.ndarray) -> bool:
        digest = hashlib.sha256(image.tobytes()).digest()
        self._picture = self._picture or digest
        return digest == self._picture


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
    published: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def final_weights(self) -> dict[str, np.ndarray]:
        return self.published[max(self.published)]


@dataclass
class World:
    """What outlives a learner: the server, the run's name and folder, the pipelines."""

    url: str
    run: str
    folder: Path
    pipelines: Path
    reward: Brightness = field(default_factory=Brightness)

    def replay(self) -> RedisReplay:
        return RedisReplay.connect(
            ReplaySettings(url=self.url, run=self.run, capacity_records=1000)
        )

    @property
    def model(self) -> Model:
        return Model(
            path=str(self.pipelines / "lcm"),
            teacher=str(self.pipelines / "base"),
            lora_rank=2,
            lora_alpha=2,
            guidance_scale=3.0,
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
            method = build_lasro(
                LASRO,
                self.model,
                Learner(),
                source=self._source(stopping),
                prompts=PROMPTS,
                seat=Seat(SEED),
            )
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
        return life

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
        pipeline = PipelineFolder.locate(self.model.path)
        unet = trainable_unet(pipeline, self.model, seed=SEED)
        policy = FewStepPolicy(
            network=lambda x, t, text, w: (
                unet(x, t, encoder_hidden_states=text, timestep_cond=w).sample
            ),
            encode=pipeline.prompt_encoder(),
            take=lambda weights: load_arrays(unet, dict(weights)),
            schedule=pipeline.schedule,
            latent_shape=pipeline.latent_shape,
            group_size=MEMBERS,
            num_steps=STEPS,
            guidance_scale=self.model.guidance_scale,
            guidance_dim=unet.config.time_cond_proj_dim,  # pyright: ignore
        )
        return SamplerWorker(
            self.replay(),
            PromptSource(PROMPTS, run_seed=SEED),
            shelf,
            policy,
            owner=f"sampler-{number}",
            loaded_version=0,
        )

    def _reward_server(self, number: int) -> RewardServer:
        vae = PipelineFolder.locate(self.model.path).vae()
        return RewardServer(
            self.replay(),
            lambda latents: decode_latents(vae, torch.from_numpy(latents)),
            {"brightness": self.reward},
            owner=f"reward-{number}",
            settings=ServerSettings(max_batch=STEPS, block_s=0.1),
        )


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    before = dict(os.environ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_ranks(0, 1, "127.0.0.1", port, timeout_s=60)
    yield
    leave_ranks()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def new_world(
    server: EmbeddedServer,
    pipelines: Path,
    one_rank: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., World]:
    def make(reward: Brightness | None = None) -> World:
        folder = tmp_path_factory.mktemp("run")
        return World(server.url, folder.name, folder, pipelines, reward or Brightness())

    return make


@pytest.fixture(scope="module")
def straight(new_world: Callable[..., World]) -> Life:
    """A run that nothing disturbed."""
    return new_world().live()


def stop_at(wanted: int) -> Callable[[int, threading.Event], None]:
    return lambda version, stopping: stopping.set() if version == wanted else None


def kill_at(wanted: int) -> Callable[[int, threading.Event], None]:
    def end(version: int, stopping: threading.Event) -> None:
        if version == wanted:
            raise Killed

    return end


def assert_same_weights(life: Life, other: Life) -> None:
    assert life.final_weights.keys() == other.final_weights.keys()
    odd = [
        name
        for name, array in life.final_weights.items()
        if not np.array_equal(array, other.final_weights[name])
    ]
    assert odd == []


def test_a_run_moves_the_policy(straight: Life) -> None:
    first, last = straight.published[0], straight.final_weights
    assert any(not np.array_equal(first[name], last[name]) for name in first)


def test_a_stopped_run_says_that_it_did_not_finish(
    new_world: Callable[..., World],
) -> None:
    assert not new_world().live(at_version=stop_at(1)).finished


def test_stopping_and_resuming_changes_no_bit_and_scores_no_record_twice(
    straight: Life, new_world: Callable[..., World]
) -> None:
    world = new_world()
    world.live(at_version=stop_at(2))
    resumed = world.live(resume=True)
    assert_same_weights(resumed, straight)
    assert world.reward.pictures == TICKETS * MEMBERS * STEPS


def test_stopping_while_the_surrogate_is_fitted_changes_no_bit_and_repeats_no_step(
    straight: Life, new_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, held, steps = new_world(), list[threading.Event](), 0
    step_as_ever = SurrogateTrainer.step

    def step(trainer: SurrogateTrainer, batch: GroupBatch) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 2:
            held[0].set()
        return step_as_ever(trainer, batch)

    monkeypatch.setattr(SurrogateTrainer, "step", step)
    stopped = world.live(at_version=lambda version, stopping: held.append(stopping))
    assert (stopped.finished, steps) == (False, 2)
    assert_same_weights(world.live(resume=True), straight)
    assert steps == LASRO.pretrain.max_steps + (LASRO.cycles - 1) * LASRO.surrogate_steps


def test_a_learner_killed_between_checkpoints_ends_with_the_same_weights(
    straight: Life, new_world: Callable[..., World]
) -> None:
    world = new_world()
    world.live(at_version=kill_at(3))
    assert_same_weights(world.live(resume=True), straight)


class Touch:
    """Pickled code: makes a file wherever it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_code_in_a_checkpoint_is_not_run(new_world: Callable[..., World]) -> None:
    world = new_world()
    world.live(at_version=stop_at(1))
    found = newest(world.folder)
    assert found is not None
    (weights,) = (found / "policy").rglob("*.pt")
    content = torch.load(weights, weights_only=False)
    torch.save({**content, "odd": Touch(world.folder / "was-here")}, weights)
    state = json.loads((found / "state.json").read_text())
    size, checksum = weights.stat().st_size, zlib.crc32(weights.read_bytes())
    state["files"][str(weights.relative_to(found))] = [size, checksum]
    (found / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        world.live(resume=True)
    assert not (world.folder / "was-here").exists()


def test_a_failed_record_leaves_its_group_out_and_the_run_goes_on(
    new_world: Callable[..., World],
) -> None:
    world = new_world(Brightness(refused=PROMPTS[0]))
    assert world.live().finished
    assert len(world.complete_groups()) == TICKETS - 1


def test_a_run_whose_replay_was_lost_goes_on_with_new_tickets_alone(
    new_world: Callable[..., World],
) -> None:
    world = new_world()
    world.live(at_version=stop_at(2))
    done = world.complete_groups()
    world.replay().erase()
    assert world.live(resume=True).finished
    assert world.complete_groups() == list(range(len(done), TICKETS))
