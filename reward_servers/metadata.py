"""Rewards that ask what a prompt comes with.

A reward whose `score` has a parameter named `metadata` is called with it: a list of B mappings,
one a row, of what the row's prompt comes with in the run's prompt set. Every other reward is called
as it always was.

    reward = informed(build_reward(kind, args), prompt_set.table)

Whoever scores looks it up by the prompt's text, so a server, an evaluation, a learner that decodes,
and a record that is scored again all find the same. Knows nothing of where a prompt set is from.

Shape suffixes: B images, H W pixels.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reward_servers.base import RewardModel, Scored

Table = Mapping[str, Mapping[str, Any]]
"""What a prompt comes with, by its text."""


def informed(model: RewardModel, table: Table) -> RewardModel:
    """The model itself, or one that hands it the metadata that its `score` asks for."""
    asks = getattr(model, "asks_for_metadata", None)  # of a model that only stands for another
    if asks is None:
        asks = asks_for_metadata(model.score)
    return Informed(model, table) if asks else model


def asks_for_metadata(method: Callable[..., Any]) -> bool:
    """Whether it has a parameter of that name."""
    try:
        parameter = inspect.signature(method).parameters.get("metadata")
    except ValueError:  # some callables written in C have no signature
        return False
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


def rows_of(table: Table, prompts: Sequence[str]) -> list[Mapping[str, Any]]:
    """What the prompts come with, one mapping each.

    Raises:
        ValueError: one of them is not in the prompt set.
    """
    for prompt in prompts:
        if prompt not in table:
            raise ValueError(
                f"the prompt {prompt[:80]!r} is not in the run's prompt set, so there is no "
                "metadata of it; go on with the prompts that the run began with"
            )
    return [table[prompt] for prompt in prompts]


class Informed:
    """A reward with the prompt set that its pictures were made for."""

    def __init__(self, model: Any, table: Table) -> None:
        self._model = model
        self._table = table

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Scored:
        """The model's scores; a prompt that is not in the set fails its rows."""
        rows = rows_of(self._table, prompts)
        return self._model.score(images_BHWC, prompts, metadata=rows)
