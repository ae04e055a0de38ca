"""One update of a policy, alike for all methods: whose it is, its random numbers, its parts."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from learner.collectives import mean_over_ranks
from learner.engine import Engine

Metrics = Mapping[str, float | Tensor]
"""Those of one part. A tensor is read when all parts are done: reading it waits for the device."""
PartLoss = Callable[[slice], tuple[Tensor, Metrics]]
"""Rows of this rank -> their mean loss, and metrics."""
_Batch = TypeVar("_Batch", contravariant=True)


class UpdatedPolicy(Protocol[_Batch]):
    """A policy that is improved from one batch after the other."""

    @property
    def steps_taken(self) -> int:
        """Updates so far."""
        ...

    def step(self, batch: _Batch) -> dict[str, float]:
        """One update from rows of this rank; returns its metrics."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What a step carries to the next, beside weights and optimizer."""
        ...

    def from_json(self, state: dict[str, Any]) -> None:
        """Restores it."""
        ...


class CountedUpdates:
    """What policies share whose update goes through in parts, and that count their updates.

    Args:
        engine: of the policy.
        parts: that this rank's rows of an update go through in.

    Attributes:
        steps_taken: updates so far.
    """

    def __init__(self, engine: Engine, parts: int) -> None:
        self._engine = engine
        self._parts = parts
        self.steps_taken = 0

    def to_json(self) -> dict[str, Any]:
        """What a step carries to the next, beside weights and optimizer."""
        return {"step": self.steps_taken}

    def from_json(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.steps_taken = state["step"]

    def _update(self, loss_of: PartLoss) -> dict[str, float]:
        """One update; returns its metrics."""
        metrics = update_in_parts(self._engine, self._parts, loss_of)
        self.steps_taken += 1
        return metrics


def step_generator(seed: int, step: int) -> torch.Generator:
    """What an update draws its random numbers from: alike on every rank, whatever came before.

    Args:
        seed: of the run.
        step: updates before this one.
    """
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def update_in_parts(engine: Engine, count: int, loss_of: PartLoss) -> dict[str, float]:
    """One step down the mean of as many losses; returns the mean of their metrics, over all ranks.

    Args:
        count: parts that this rank's rows go through in. Rows of one part are `count` apart, as
            those of a rank are.
    """
    told: list[Metrics] = []

    def losses() -> Iterator[Tensor]:
        for part in range(count):
            loss, metrics = loss_of(slice(part, None, count))
            told.append(metrics)
            yield loss

    norm = engine.update(losses())
    means = {name: sum(float(part[name]) for part in told) / len(told) for name in told[0]}
    return {**mean_over_ranks(means), "gradient_norm": norm}
