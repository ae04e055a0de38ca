"""Noise on labels: of the given size, the same when asked again, and no number for a failure."""

from collections.abc import Sequence

import numpy as np
import pytest

from reward_servers.base import Failure, RewardModel, Scored, checked_scores
from reward_servers.noisy import NoisyReward

IMAGES = np.random.default_rng(0).integers(0, 256, (500, 4, 4, 3), dtype=np.uint8)
PROMPTS = ["a"] * 500


class Ones:
    """Scores everything 1; fails the prompt `bad`."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        bad = {row: "bad" for row, prompt in enumerate(prompts) if prompt == "bad"}
        return Scored(np.ones(len(prompts), np.float32), bad)


def labels(seed: int = 0, name: str = "a", model: RewardModel | None = None) -> np.ndarray:
    noisy = NoisyReward(model or Ones(), 0.5, name=name, seed=seed)
    return np.array(checked_scores(noisy, IMAGES, PROMPTS))


def test_noise_has_the_given_spread_around_the_score() -> None:
    assert labels().mean() == pytest.approx(1.0, abs=0.07)
    assert labels().std() == pytest.approx(0.5, rel=0.1)


def test_a_picture_that_is_asked_about_again_gets_the_same_label() -> None:
    noisy = NoisyReward(Ones(), 0.5, name="a", seed=0)
    again = [checked_scores(noisy, IMAGES[i : i + 1], PROMPTS[:1])[0] for i in range(5)]
    assert again == labels()[:5].tolist()


def test_two_rewards_err_independently_and_each_alike_when_made_again() -> None:
    taste, size = labels(name="taste"), labels(name="size")
    # Of 500 independent pairs a correlation's deviation is 0.045.
    assert abs(np.corrcoef(taste, size)[0, 1]) < 0.15
    assert np.array_equal(labels(name="taste"), taste)


def test_a_wrong_result_is_as_wrong_with_noise() -> None:
    class One:
        def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
            return np.array(0.3, np.float32)

    told = checked_scores(NoisyReward(One(), 0.5, name="a", seed=0), IMAGES[:4], PROMPTS[:4])
    assert told == checked_scores(One(), IMAGES[:4], PROMPTS[:4])
    assert all(isinstance(each, Failure) for each in told)


def test_another_seed_or_prompt_has_other_noise() -> None:
    assert not np.allclose(labels(), labels(seed=1))
    other = checked_scores(NoisyReward(Ones(), 0.5, name="a", seed=0), IMAGES[:5], ["b"] * 5)
    assert not np.allclose(other, labels()[:5])  # pyright: ignore


def test_a_failure_stays_one() -> None:
    noisy = NoisyReward(Ones(), 0.5, name="a", seed=0)
    assert checked_scores(noisy, IMAGES[:2], ["a", "bad"])[1] == Failure("bad")
