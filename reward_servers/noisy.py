"""Labels with noise, as those of people: the reward that is asked is not the truth.

Shape suffixes: B images, H W pixels.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from reward_servers.base import RewardModel, Scored


class NoisyReward:
    """A reward plus Gaussian noise of its own for every picture.

    The noise is a function of the picture, the prompt, the reward's name and the seed, so that a
    picture that is asked about again, after a crash, gets the same label, and no reward errs as
    another one does.

    Args:
        std: of the noise, in the reward's units.
        name: of the reward in its run.
    """

    def __init__(self, model: RewardModel, std: float, *, name: str, seed: int) -> None:
        self._model = model
        self._std = std
        self._stream = [seed, zlib.crc32(name.encode())]

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Scored:
        """The model's scores, each with its noise; failures stay what they are."""
        result = self._model.score(images_BHWC, prompts)
        noise = [
            self._noise(image, prompt) for image, prompt in zip(images_BHWC, prompts, strict=True)
        ]
        noise_B = self._std * np.array(noise, dtype=np.float32)
        values = result.values if isinstance(result, Scored) else result
        if not isinstance(values, np.ndarray) or values.shape != noise_B.shape:
            return result  # not a score a row, which whoever asked will say
        noisy_B = values + noise_B
        return Scored(noisy_B, result.failures) if isinstance(result, Scored) else noisy_B

    def _noise(self, image: np.ndarray, prompt: str) -> float:
        key = zlib.crc32(prompt.encode(), zlib.crc32(np.ascontiguousarray(image).tobytes()))
        return float(np.random.default_rng([*self._stream, key]).standard_normal())
