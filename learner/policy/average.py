"""A running average of the weights that are trained: often better than the last of them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.policy.board import Weights
from learner.policy.trainable import copied


class WeightAverage:
    """Kept where the weights are; they are what it begins with.

    Args:
        weights: by name; they change in place.
        decay: what stays of the average with each step.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self._weights = {name: value.detach() for name, value in weights.items()}
        self._average = {name: value.clone() for name, value in self._weights.items()}
        self._decay = decay

    def follow(self) -> None:
        """Moves towards the weights as they are now."""
        torch._foreach_lerp_(
            list(self._average.values()), list(self._weights.values()), 1 - self._decay
        )

    def arrays(self) -> Weights:
        """A copy, float32."""
        return {name: copied(value) for name, value in self._average.items()}

    def save(self, path: Path) -> None:
        """Writes it in safetensors."""
        save_file({name: value.contiguous() for name, value in self._average.items()}, path)

    def load(self, path: Path) -> None:
        """Takes over what `save` wrote."""
        for name, value in load_file(path).items():
            self._average[name].copy_(value)
