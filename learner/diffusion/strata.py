"""Which states of a long chain a trajectory keeps, and how often each of them is drawn.

Keeping all 50 latents of a chain to use one is most of the traffic of a replay buffer. A
trajectory keeps a few instead: the chain is cut into as many parts of about equal weight, and one
state of each is kept, by the weight of the states. Drawing a kept state by the weight of its part
then draws every state of the chain in proportion to its own weight, exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Strata:
    """A chain's states, cut into parts.

    State i is the latent before step i of `num_steps`; it weighs discount^(num_steps − 1 − i).

    Args:
        edges: the first state of every part, and the end of the last one; increasing.
    """

    num_steps: int
    edges: tuple[int, ...]
    discount: float = 1.0

    @classmethod
    def spread(cls, num_steps: int, count: int, discount: float = 1.0) -> "Strata":
        """`count` parts of the whole chain, of about equal weight.

        Raises:
            ValueError: `count` is not 1 to num_steps.
        """
        _check_count(num_steps, count)
        total_T = np.cumsum(discount ** np.arange(num_steps - 1, -1, -1.0))
        shares = np.arange(count + 1) / count
        edges = np.searchsorted(total_T / total_T[-1], shares + 1e-9, side="right")
        edges[0], edges[-1] = 0, num_steps
        for part in range(count - 1, 0, -1):  # heavy states would leave a part without any
            edges[part] = min(edges[part], edges[part + 1] - 1)
        return cls(num_steps, tuple(np.maximum(edges, np.arange(count + 1)).tolist()), discount)

    @classmethod
    def last(cls, num_steps: int, count: int, discount: float = 1.0) -> "Strata":
        """The `count` states nearest to the clean one, all of them kept.

        Raises:
            ValueError: `count` is not 1 to num_steps.
        """
        _check_count(num_steps, count)
        return cls(num_steps, tuple(range(num_steps - count, num_steps + 1)), discount)

    @property
    def shares(self) -> np.ndarray:
        """Weight of every part, [K], in sum 1: how often its kept state is to be drawn."""
        weights = [self._weights(first, stop).sum() for first, stop in pairwise(self.edges)]
        return np.array(weights) / sum(weights)

    def pick(self, uniforms: Sequence[float]) -> tuple[int, ...]:
        """The state of every part that is kept, increasing.

        Args:
            uniforms: one number of [0, 1) a part.
        """
        states = []
        for (first, stop), uniform in zip(pairwise(self.edges), uniforms, strict=True):
            total = np.cumsum(self._weights(first, stop))
            states.append(first + int(np.searchsorted(total, uniform * total[-1], side="right")))
        return tuple(states)

    def draw(self, count: int, rng: Generator) -> np.ndarray:
        """Which of its kept states each of `count` trajectories steps from, int64 [count]."""
        return rng.choice(len(self.edges) - 1, size=count, p=self.shares)

    def _weights(self, first: int, stop: int) -> np.ndarray:
        return self.discount ** (self.num_steps - 1 - np.arange(first, stop, dtype=np.float64))


def _check_count(num_steps: int, count: int) -> None:
    if not 1 <= count <= num_steps:
        raise ValueError(f"{count} states of a chain of {num_steps}; keep 1 to {num_steps}")
