"""A reward that needs more than the prompt: are there as many things of a colour as were asked for?

What was asked for stands beside the prompt, in a file with one JSON object a line:

    {"prompt": "a red circle left of a blue square", "counts": {"red": 1, "blue": 1}}

and reaches the reward as `metadata`. In a config:

    prompts: deploy/examples/counted-prompts.jsonl
    rewards:
      counts: {kind: "deploy.examples.counting:ColourCounts"}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from reward_servers.scene import BACKGROUND, COLOURS

_NAMES = tuple(COLOURS)
_PALETTE = np.array([*COLOURS.values(), BACKGROUND], dtype=np.float32)


class ColourCounts:
    """1 where every colour is there as often as asked for, less for each that is not; at least 0.

    Args:
        least: pixels that a blob of one colour must have to be counted as a thing.
    """

    def __init__(self, least: int = 8) -> None:
        self._least = least

    @staticmethod
    def check_metadata(metadata: Mapping[str, Any], least: int = 8) -> None:
        """Called for every prompt before anything starts; raises ValueError for what is of no use.

        It takes what one prompt comes with, and then the arguments of the class.
        """
        counts = metadata.get("counts")
        if not isinstance(counts, Mapping) or not counts:
            raise ValueError('"counts" is missing, such as {"red": 1, "blue": 2}')
        if unknown := sorted(set(counts) - set(_NAMES)):
            raise ValueError(f"unknown colours {unknown}; known are {', '.join(_NAMES)}")
        if wrong := [n for n in counts.values() if not isinstance(n, int) or n < 1]:
            raise ValueError(f"counts are whole numbers from 1, given {wrong}")

    def score(
        self,
        images_BHWC: np.ndarray,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> np.ndarray:
        """One float32 a picture; higher is better.

        Args:
            metadata: B mappings, what each picture's prompt comes with. To be read, not changed.
        """
        rows = zip(images_BHWC, metadata, strict=True)
        scores = [self._score(image_HWC, row["counts"]) for image_HWC, row in rows]
        return np.array(scores, dtype=np.float32)

    def _score(self, image_HWC: np.ndarray, asked: Mapping[str, int]) -> float:
        distances = ((image_HWC[..., None, :].astype(np.float32) - _PALETTE) ** 2).sum(axis=-1)
        nearest_HW = distances.argmin(axis=-1)
        found = {name: self._blobs(nearest_HW == _NAMES.index(name)) for name in asked}
        return sum(min(n, found[name]) / max(n, found[name]) for name, n in asked.items()) / len(
            asked
        )

    def _blobs(self, mask_HW: np.ndarray) -> int:
        labelled: Any = ndimage.label(mask_HW)
        labels_HW, _ = labelled
        return int((np.bincount(labels_HW.ravel())[1:] >= self._least).sum())
