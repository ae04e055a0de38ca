"""The answer of a reward in another process, or on another machine: parsed, never trusted.

    {"scores": [0.25, null, …], "failures": {"1": "why"}}

One entry a row: a number, or null where `failures` says why not. Both JSON and msgpack can hold it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from reward_servers.base import Scored

_MAX_REASON = 400  # characters


class AnswerError(ValueError):
    """An answer that is not one score or one reason a row."""


def to_answer(scored: Scored) -> dict[str, Any]:
    """The message of scores [B]; a row that failed, or is no finite number, has a reason."""
    failures = {int(row): str(reason)[:_MAX_REASON] for row, reason in scored.failures.items()}
    for row in np.flatnonzero(~np.isfinite(scored.values)):
        failures.setdefault(int(row), f"the reward returned {scored.values[row]}")
    scores = [None if row in failures else float(x) for row, x in enumerate(scored.values)]
    return {"scores": scores, "failures": {str(row): why for row, why in failures.items()}}


def of_answer(message: object, count: int) -> Scored:
    """Scores of `count` rows, float64; a number that is not finite is left to `checked_scores`.

    Raises:
        AnswerError: the message is anything else.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("scores"), list):
        raise AnswerError(f"the answer is {_short(message)}; it must hold a list 'scores'")
    scores, failures = message["scores"], message.get("failures") or {}
    if len(scores) != count:
        raise AnswerError(f"the answer has {len(scores)} scores for {count} pictures")
    if not isinstance(failures, Mapping):
        raise AnswerError(f"'failures' is {_short(failures)}; it must map rows to reasons")
    reasons = {_row(row, count): _reason(why) for row, why in failures.items()}
    values = np.full(count, np.nan)
    for row, score in enumerate(scores):
        if row in reasons:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise AnswerError(f"score {row} is {_short(score)} and no failure says why")
        values[row] = _number(score)
    return Scored(values, reasons)


def all_failed(count: int, reason: str) -> Scored:
    """No score of any row, for one reason; unlike an exception it has nothing asked again."""
    return Scored(np.full(count, np.nan), dict.fromkeys(range(count), reason))


def _number(score: int | float) -> float:
    try:
        return float(score)
    except OverflowError:  # of an integer with hundreds of digits
        return float("inf")


def _row(row: object, count: int) -> int:
    if isinstance(row, str) and row.isascii() and row.isdigit() and len(row) < 10:
        row = int(row)
    if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < count:
        raise AnswerError(f"a failure names row {_short(row)} of {count}")
    return row


def _reason(why: object) -> str:
    if not isinstance(why, str):
        raise AnswerError(f"the reason of a failure is {_short(why)}; it must be a text")
    return " ".join(why[:_MAX_REASON].split())


def _short(value: object) -> str:
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else text[:77] + "..."
