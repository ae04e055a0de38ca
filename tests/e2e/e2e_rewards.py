"""Rewards that misbehave, as a user's might; found by the workers through PYTHONPATH."""

import threading
import time
from collections.abc import Sequence

import numpy as np


class RaisesForRed:
    """Refuses every prompt that names something red."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if any("red" in prompt.split() for prompt in prompts):
            raise RuntimeError("no red today")
        return images_BHWC.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32) / 255


class AlwaysRaises:
    """A reward whose model is gone."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        raise RuntimeError("the model is gone")


def _brightness(images_BHWC: np.ndarray) -> np.ndarray:
    return images_BHWC.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32) / 255


class SlowBrightness:
    """A moment for every batch."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        time.sleep(1.0)
        return _brightness(images_BHWC)


class StallsOnce:
    """The first call of every process never returns; all others work."""

    def __init__(self) -> None:
        self._calls = 0

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        self._calls += 1
        if self._calls == 1:
            threading.Event().wait()
        return _brightness(images_BHWC)


class DownForAWhile:
    """Works on three calls, then raises until eight seconds have passed, then works for good."""

    def __init__(self) -> None:
        self._calls = 0
        self._down_since: float | None = None

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        self._calls += 1
        if self._calls > 3:
            self._down_since = self._down_since or time.monotonic()
            if time.monotonic() - self._down_since < 8:
                raise ConnectionError("the service is down")
        return _brightness(images_BHWC)


class SleepsForever:
    """No call ever returns."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        threading.Event().wait()
        return _brightness(images_BHWC)


class ReturnsNaN:
    """Numbers that are none."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return np.full(len(prompts), np.nan, np.float32)


class WrongShape:
    """A column instead of a row."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return _brightness(images_BHWC)[:, None]


class ShortBatch:
    """One value too few."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return _brightness(images_BHWC)[1:]


class Brightness:
    """Higher for brighter pictures."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return _brightness(images_BHWC)


class Darkness:
    """What `Brightness` is opposed to."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return -_brightness(images_BHWC)
