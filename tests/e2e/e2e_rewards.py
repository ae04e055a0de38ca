"""Rewards that misbehave, as a user's might; found by the workers through PYTHONPATH."""

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
