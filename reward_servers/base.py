"""What a reward model is, and what a score may be.

A reward is a number or a failure with its reason. A failure never becomes a number: no zero,
no mean, no NaN stands in for it, because a loss could not tell it from a verdict.

Shape suffixes: B images, H W pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
_MAX_REASON = 400  # characters; a reason is kept with its record
_MAX_VALUE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Failure:
    """An image that could not be scored."""

    reason: str


@dataclass(frozen=True)
class Scored:
    """Values of a batch in which some rows could not be scored.

    Args:
        values: float32 [B]; what stands at a failed row is ignored.
        failures: row -> reason.
    """

    values: np.ndarray
    failures: Mapping[int, str] = field(default_factory=dict)


class RewardModel(Protocol):
    """Scores pictures; higher is better.

    A server calls `score` from one thread, batch after batch of changing size; only a call
    that missed its deadline may still run when the next one starts on another thread.

        for outcome in checked_scores(model, images_BHWC, prompts): ...
    """

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Scored:
        """One float32 a row.

        Args:
            images_BHWC: uint8 [B, H, W, 3], RGB; read-only, as all rewards share it.
            prompts: B texts.

        A third parameter named `metadata` is handed a list of B mappings, to be read only: what
        each prompt comes with in the run's prompt set (`reward_servers.metadata`).

        Returns:
            float32 [B], or a `Scored` when some rows cannot be scored. Raising fails the batch.
        """
        ...


class DifferentiableReward(RewardModel, Protocol):
    """A reward that a gradient can pass: a torch module whose `score` tells the same.

    A method that decodes in the learner calls it there; everywhere else it is a `RewardModel`.
    """

    def forward(self, images_BCHW: "Tensor", prompts: Sequence[str]) -> "Tensor":
        """Float32 [B], differentiable in the images.

        Args:
            images_BCHW: float32 [B, 3, H, W], RGB in [0, 1].
            prompts: B texts.

        It may have a third parameter `metadata`, as `score` may.
        """
        ...


Outcome: TypeAlias = float | Failure


class _BadResultError(Exception):
    """A model returned something that is not a score a row."""


def checked_scores(
    model: RewardModel, images_BHWC: np.ndarray, prompts: Sequence[str]
) -> list[Outcome]:
    """One finite float or `Failure` a row, in order, whatever the model does.

    A batch that raises, or whose result has the wrong form, is scored again row by row, so
    that a bad row does not fail its neighbours. Hence a model may be called up to B + 1 times.

    Raises:
        ValueError: the caller's images are not uint8 [B, H, W, 3] with B prompts.
    """
    _check_inputs(images_BHWC, prompts)
    if len(prompts) == 0:
        return []
    try:
        return _outcomes(model.score(images_BHWC, prompts), len(prompts))
    except Exception as error:  # noqa: BLE001  foreign code: its error is the row's outcome
        if len(prompts) == 1:
            return [Failure(reason_of(error))]
        log.info("batch of %d images failed, scoring row by row: %s", len(prompts), error)
    rows = range(len(prompts))
    return [checked_scores(model, images_BHWC[i : i + 1], prompts[i : i + 1])[0] for i in rows]


def reason_of(error: BaseException) -> str:
    """A bounded one-line reason of an exception."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, _BadResultError) else type(error).__name__
    return ": ".join(part for part in (name, text) if part)[:_MAX_REASON]


def _check_inputs(images_BHWC: np.ndarray, prompts: Sequence[str]) -> None:
    shape, dtype = images_BHWC.shape, images_BHWC.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or shape[0] != len(prompts):
        raise ValueError(
            f"images are {dtype} {list(shape)} with {len(prompts)} prompts; rewards take uint8 "
            "[B, H, W, 3] with B prompts"
        )


def _outcomes(result: object, count: int) -> list[Outcome]:
    scored = result if isinstance(result, Scored) else Scored(result)  # type: ignore[arg-type]
    values = _float_values(scored.values, count)
    failures = dict(scored.failures)
    strays = [row for row in failures if not isinstance(row, int) or not 0 <= row < count]
    if strays:
        raise _BadResultError(f"failures name rows {strays!r} of a batch of {count}")
    return [
        Failure(str(failures[row])[:_MAX_REASON]) if row in failures else _finite(value)
        for row, value in enumerate(values)
    ]


def _float_values(values: object, count: int) -> list[float]:
    if not isinstance(values, np.ndarray):
        raise _BadResultError(
            f"the reward returned {type(values).__name__}; it must return a numpy array or Scored"
        )
    if not np.issubdtype(values.dtype, np.floating) or values.shape != (count,):
        raise _BadResultError(
            f"the reward returned {values.dtype} {list(values.shape)}; it must return float32 "
            f"[{count}]"
        )
    return [float(value) for value in values]


def _finite(value: float) -> Outcome:
    if abs(value) <= _MAX_VALUE:  # False for NaN too
        return value
    return Failure(f"the reward returned {value}, which is not a finite float32")
