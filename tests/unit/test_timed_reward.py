"""A reward with a deadline: batches that hang are failures, and nobody waits for ever."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from reward_servers.base import Failure
from reward_servers.timed import StalledError, TimedReward, score_all

TIMEOUT_S = 0.1


class Reward:
    """What is to be done on each call, the last thing for ever after; counts its calls."""

    def __init__(self, *acts: Callable[[int], np.ndarray]) -> None:
        self._acts = list(acts)
        self.sizes: list[int] = []

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        act = self._acts.pop(0) if len(self._acts) > 1 else self._acts[0]
        self.sizes.append(len(prompts))
        return act(len(prompts))


def ones(count: int) -> np.ndarray:
    return np.ones(count, np.float32)


@pytest.fixture
def hang() -> Iterator[Callable[[int], np.ndarray]]:
    """Returns when the test is over."""
    over = threading.Event()

    def act(count: int) -> np.ndarray:
        over.wait()
        return ones(count)

    yield act
    over.set()


def scored(
    reward: Reward,
    count: int = 4,
    *,
    batch: int = 2,
    attempts: int = 3,
    timeout_s: float = 10.0,
) -> list:
    timed = TimedReward("r", reward, timeout_s=timeout_s)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    return score_all(timed, images, [""] * count, batch=batch, attempts=attempts)


def test_every_row_is_scored_in_batches() -> None:
    reward = Reward(ones)
    assert scored(reward, 5) == [1.0] * 5
    assert reward.sizes == [2, 2, 1]


def test_a_batch_that_hangs_once_is_scored_again(hang: Callable[[int], np.ndarray]) -> None:
    assert scored(Reward(hang, ones), timeout_s=TIMEOUT_S) == [1.0] * 4


def test_a_batch_that_fails_as_a_whole_is_tried_as_often_as_allowed() -> None:
    reward = Reward(lambda count: np.full(count, np.nan, np.float32))
    assert all(isinstance(outcome, Failure) for outcome in scored(reward, 2, attempts=3))
    assert reward.sizes == [2, 2, 2]


def test_a_row_that_fails_alone_is_not_tried_again() -> None:
    reward = Reward(lambda count: np.array([1.0, np.nan], np.float32)[:count])
    first, second = scored(reward, 2)
    assert first == 1.0
    assert isinstance(second, Failure)
    assert reward.sizes == [2]


def test_a_reward_that_always_hangs_costs_a_few_deadlines(
    hang: Callable[[int], np.ndarray],
) -> None:
    begun = time.monotonic()
    outcomes = scored(Reward(hang), 100, timeout_s=TIMEOUT_S)
    assert [type(outcome) for outcome in outcomes] == [Failure] * 100
    assert time.monotonic() - begun < 50 * TIMEOUT_S


def test_too_many_stuck_calls_are_an_error(hang: Callable[[int], np.ndarray]) -> None:
    timed = TimedReward("r", Reward(hang), timeout_s=TIMEOUT_S)
    score_all(timed, np.zeros((1, 2, 2, 3), np.uint8), [""], batch=1, attempts=3)
    with pytest.raises(StalledError, match="3 calls of reward 'r' have not returned"):
        timed.check()
