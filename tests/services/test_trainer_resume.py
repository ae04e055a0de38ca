"""A whole learner over a real replay, stopped, killed and resumed."""

import dataclasses
import json
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buffer.embedded import EmbeddedServer
from learner import checkpoint
from learner.checkpoint import newest, read_state
from learner.group_batch import GroupBatch
from learner.surrogate_training import SurrogateTrainer
from tests.services.training_world import (
    LASRO,
    MEMBERS,
    PROMPTS,
    STEPS,
    TICKETS,
    Brightness,
    Killed,
    Life,
    World,
)

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def new_world(
    server: EmbeddedServer,
    pipelines: Path,
    one_rank: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., World]:
    def make(reward: Brightness | None = None, **changes: Any) -> World:
        folder = tmp_path_factory.mktemp("run")
        reward = reward or Brightness()
        return World(server.url, folder.name, folder, pipelines, reward, **changes)

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
    found = newest(world.folder)
    assert found is not None
    assert "midway" in read_state(found)  # after a cycle's policy steps, before the surrogate's
    resumed = world.live(resume=True)
    assert_same_weights(resumed, straight)
    assert world.reward.pictures == TICKETS * MEMBERS * STEPS


@pytest.mark.slow
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


@pytest.mark.slow
def test_networks_that_compute_in_bf16_train_weights_in_float32(
    straight: Life, new_world: Callable[..., World]
) -> None:
    life = new_world(precision="bf16").live()
    assert life.finished
    first, last = life.published[0], life.published[max(life.published)]
    assert {array.dtype for array in last.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in last.values())
    assert any(not np.array_equal(first[name], last[name]) for name in first)
    of_fp32 = straight.published[max(straight.published)]
    assert any(not np.array_equal(of_fp32[name], last[name]) for name in last)


@pytest.mark.slow
def test_a_frozen_surrogate_is_fitted_and_never_adapted(
    new_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step_as_ever = SurrogateTrainer.step

    def step(trainer: SurrogateTrainer, batch: GroupBatch) -> dict[str, float]:
        nonlocal steps
        steps += 1
        return step_as_ever(trainer, batch)

    monkeypatch.setattr(SurrogateTrainer, "step", step)
    frozen = LASRO.model_copy(update={"surrogate_steps": 0})
    assert new_world(settings=frozen).live().finished
    assert steps == LASRO.pretrain.max_steps


@pytest.mark.slow
def test_over_several_servers_a_run_that_is_killed_and_resumed_changes_no_bit(
    straight: Life,
    new_world: Callable[..., World],
    server: EmbeddedServer,
    more_servers: list[EmbeddedServer],
) -> None:
    urls = " ".join(each.url for each in (server, *more_servers))
    world = dataclasses.replace(new_world(), url=urls)
    assert not world.live(at_version=kill_at(2)).finished
    assert_same_weights(world.live(resume=True), straight)
    assert world.reward.pictures == TICKETS * MEMBERS * STEPS


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
    del state[checkpoint._SEAL]
    state[checkpoint._SEAL] = checkpoint._seal(state)
    (found / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="holds more than tensors and numbers"):
        world.live(resume=True)
    assert not (world.folder / "was-here").exists()


def test_rewards_that_are_all_alike_end_a_run_before_it_fits_a_surrogate(
    new_world: Callable[..., World],
) -> None:
    with pytest.raises(ValueError, match="a surrogate has nothing to learn"):
        new_world(Brightness(flat=True)).live()


@pytest.mark.slow
def test_a_failed_record_leaves_its_group_out_and_the_run_goes_on(
    new_world: Callable[..., World],
) -> None:
    world = new_world(Brightness(refused=PROMPTS[0]))
    assert world.live().finished
    assert len(world.complete_groups()) == TICKETS - 1


@pytest.mark.slow
def test_a_run_whose_replay_was_lost_goes_on_with_new_tickets_alone(
    new_world: Callable[..., World],
) -> None:
    world = new_world()
    world.live(at_version=stop_at(2))
    done = world.complete_groups()
    world.replay().erase()
    assert world.live(resume=True).finished
    assert world.complete_groups() == list(range(len(done), TICKETS))


def test_a_budget_of_queries_ends_the_run_and_a_resumed_one_spends_no_more(
    new_world: Callable[..., World],
) -> None:
    # The first groups and two of the four cycles.
    paid = LASRO.round_ends[2] * MEMBERS
    world = new_world(max_records=paid)
    assert not world.live(at_version=stop_at(1)).finished
    life = world.live(resume=True)
    assert life.finished
    # The policy of the last cycle climbs what the last scores taught, and is not scored any more.
    assert max(life.published) == 4
    counters = world.replay().counters()
    assert (counters.committed, counters.issued_records, counters.pending) == (paid, paid, 0)
    assert world.reward.pictures == paid * STEPS
    # Resumed once more it trains no further, until there is more to spend.
    again = world.live(resume=True)
    assert again.finished
    assert max(again.published) == 4
    assert_same_weights(again, life)
    world.max_records = None
    assert max(world.live(resume=True).published) == 5
    assert world.complete_groups() == list(range(TICKETS))


@pytest.mark.slow
def test_what_ucb_knows_of_its_labels_survives_a_stop(new_world: Callable[..., World]) -> None:
    surrogate = LASRO.surrogate.model_copy(update={"confidence": "ucb", "pessimism": 0.0})
    settings = LASRO.model_copy(update={"surrogate": surrogate})
    straight = new_world(settings=settings).live()
    world = new_world(settings=settings)
    world.live(at_version=stop_at(2))
    assert_same_weights(world.live(resume=True), straight)
