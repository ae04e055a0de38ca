"""The reward server against a hand fake of the replay."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from buffer.errors import ReplayFull
from buffer.records import Scores
from reward_servers.base import RewardModel, Scored
from reward_servers.server import RewardServer, ServerSettings
from tests.unit.reward_server_fakes import (
    FAST,
    Brightness,
    Doing,
    FakeReplay,
    decode,
    ids,
    record,
    serve,
)


def test_a_record_is_committed_with_one_value_for_each_scored_latent() -> None:
    replay = FakeReplay([record(0, level=7), record(1, level=20, scored=(1,))])
    serve(replay)
    assert {key: dict(scores.rewards) for key, scores in replay.committed.items()} == {
        ids([0])[0]: {"light": (7.0, 8.0)},
        ids([1])[0]: {"light": (21.0,)},
    }


def test_every_reward_scores_every_record() -> None:
    replay = FakeReplay([record(0)])
    serve(replay, {"light": Brightness(), "dark": Doing(lambda i, p: -Brightness().score(i, p))})
    assert replay.committed[ids([0])[0]].rewards == {"light": (7.0, 8.0), "dark": (-7.0, -8.0)}


def test_every_call_of_a_reward_is_told_with_its_seconds_and_failures() -> None:
    def half(images: np.ndarray, prompts: Sequence[str]) -> Scored:
        time.sleep(0.05)
        return Scored(np.zeros(len(prompts), np.float32), {0: "no face found"})

    calls: list[tuple[str, float, int]] = []
    replay = FakeReplay([record(0, scored=(0, 1))])
    serve(replay, {"faces": Doing(half)}, called=lambda *call: calls.append(call))
    assert {name for name, _, _ in calls} == {"faces"}
    assert {failed for _, _, failed in calls} == {1}
    assert all(seconds >= 0.05 for _, seconds, _ in calls)


def test_each_picture_is_scored_with_the_prompt_of_its_record() -> None:
    model = Brightness()
    serve(FakeReplay([record(0), record(1)]), {"light": model})
    assert sorted(model.prompts) == ["prompt 0"] * 2 + ["prompt 1"] * 2


def test_no_batch_is_larger_than_max_batch() -> None:
    model, replay = Brightness(), FakeReplay([record(i) for i in range(20)])
    serve(replay, {"light": model})
    assert max(model.batches) <= FAST.max_batch
    assert len(replay.committed) == 20


def test_records_that_wait_are_scored_together() -> None:
    model = Brightness()
    serve(FakeReplay([record(i, scored=(0,)) for i in range(8)]), {"light": model})
    assert model.batches == [8]


def test_a_batch_does_not_wait_longer_than_batch_wait_s() -> None:
    patient = replace(FAST, batch_wait_s=0.2)
    replay = FakeReplay([record(0)])
    begun = time.monotonic()
    serve(replay, settings=patient)
    assert time.monotonic() - begun >= patient.batch_wait_s
    assert max(replay.waits) <= patient.batch_wait_s


def test_a_full_batch_does_not_wait_at_all() -> None:
    patient = replace(FAST, batch_wait_s=30, max_batch=4)
    replay = FakeReplay([record(i, scored=(0,)) for i in range(4)])
    serve(replay, settings=patient)
    assert set(replay.waits) == {patient.block_s}


def test_a_failed_value_fails_its_record_only_and_says_why() -> None:
    def picky(images: np.ndarray, prompts: Sequence[str]) -> Scored:
        failures = {i: "too bright" for i, image in enumerate(images) if image.mean() == 31}
        return Scored(Brightness().score(images, prompts), failures)

    replay = FakeReplay([record(0), record(1, level=30), record(2)])
    serve(replay, {"picky": Doing(picky)})
    assert replay.failed == {ids([1])[0]: "picky of step 2: too bright"}
    assert sorted(replay.committed) == ids([0, 2])


def test_a_failed_record_is_tried_again_and_may_succeed() -> None:
    calls = iter([True])

    def first_fails(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Scored:
        values = Brightness().score(images, prompts)
        return Scored(values, {0: "not yet"}) if next(calls, False) else values

    replay = FakeReplay([record(0)], attempts=2)
    stats = serve(replay, {"light": Doing(first_fails)}).stats()
    assert (stats["retried"], stats["scored"], stats["failed"]) == (1, 1, 0)


def test_a_latent_that_cannot_be_decoded_fails_its_record_only() -> None:
    replay = FakeReplay([record(0), record(1, level=99), record(2)])
    serve(replay)
    assert replay.failed == {ids([1])[0]: "not decoded: RuntimeError: cannot decode 99"}
    assert sorted(replay.committed) == ids([0, 2])


def test_a_record_that_another_server_committed_counts_as_a_duplicate() -> None:
    replay = FakeReplay([record(0), record(1)])
    replay.committed[ids([0])[0]] = Scores({"light": (1.0, 2.0)})
    stats = serve(replay).stats()
    assert (stats["scored"], stats["duplicates"]) == (1, 1)


class FullForFailures(FakeReplay):
    """Has no room to note failures, at first."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.refused = 0

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        if self.refused < 3:
            self.refused += 1
            raise ReplayFull("the server's memory limit is reached")
        return super().fail(record_id, reason, retry=retry)


def test_scores_are_not_lost_with_a_neighbour_that_cannot_be_failed_yet() -> None:
    replay = FullForFailures([record(0, level=99), record(1), record(2, level=99), record(3)])
    stats = serve(replay, settings=replace(FAST, full_s=0.01)).stats()
    assert (replay.refused, stats["failures"]) == (3, 0)
    assert (sorted(replay.committed), sorted(replay.failed)) == (ids([1, 3]), ids([0, 2]))
    assert stats["images"] == 4  # none is scored twice


def test_stats_tell_seconds_by_stage() -> None:
    def slow(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        time.sleep(0.05)
        return Brightness().score(images, prompts)

    stats = serve(FakeReplay([record(0)]), {"slow": Doing(slow)}).stats()
    assert 0.05 <= float(stats["score_s"]) < 5
    assert (stats["images"], stats["owner"]) == (2, "r-0")


@pytest.mark.parametrize("rewards", [{}, {"a name with spaces": Brightness()}])
def test_reward_names_are_checked_at_once(rewards: dict[str, RewardModel]) -> None:
    with pytest.raises(ValueError, match=r"0 rewards|reward name"):
        RewardServer(FakeReplay([]), decode, rewards, owner="r-0")


@pytest.mark.parametrize("wrong", [{"timeout_s": 60}, {"lease_s": 60}, {"timeout_s": 0}])
def test_times_that_give_every_batch_up_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="every batch is given up"):
        ServerSettings(**{"timeout_s": 5, "lease_s": 5, "hold_s": 30, **wrong})  # pyright: ignore
