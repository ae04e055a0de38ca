"""Whatever a reward model does, every row gets a finite float or a failure."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reward_servers.base import Failure, Outcome, Scored, checked_scores


class Model:
    """A reward that does what it is told with (images, prompts), and counts its calls."""

    def __init__(self, act: Callable[[np.ndarray, Sequence[str]], Any]) -> None:
        self.act = act
        self.calls = 0

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Any:
        self.calls += 1
        return self.act(images_BHWC, prompts)


def outcomes(
    act: Callable[[np.ndarray, Sequence[str]], Any], prompts: Sequence[str] = ("a", "b", "c")
) -> list[Outcome]:
    images = np.zeros((len(prompts), 4, 4, 3), dtype=np.uint8)
    return checked_scores(Model(act), images, prompts)


def lengths(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    return np.array([len(prompt) for prompt in prompts], dtype=np.float32)


def reasons(results: Sequence[Outcome]) -> list[str]:
    return [each.reason if isinstance(each, Failure) else "" for each in results]


def test_good_scores_come_back_as_floats_in_order() -> None:
    assert outcomes(lengths, ("a", "bbb", "cc")) == [1.0, 3.0, 2.0]


def test_no_rows_have_no_outcomes() -> None:
    assert outcomes(lengths, ()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_value_that_is_not_finite_fails_its_row_only(bad: float) -> None:
    results = outcomes(lambda images, prompts: np.array([1.0, bad, 3.0][: len(prompts)]))
    assert results[::2] == [1.0, 3.0]
    assert "not a finite float32" in reasons(results)[1]


def test_a_declared_failure_keeps_its_reason_and_never_its_value() -> None:
    results = outcomes(lambda images, prompts: Scored(lengths(images, prompts), {2: "too dark"}))
    assert results == [1.0, 1.0, Failure("too dark")]


def test_a_bad_row_that_raises_does_not_fail_its_neighbours() -> None:
    def act(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if "b" in prompts:
            raise RuntimeError("cannot read b")
        return lengths(images, prompts)

    assert outcomes(act) == [1.0, Failure("RuntimeError: cannot read b"), 1.0]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (
            np.zeros((3, 1), dtype=np.float32),
            r"returned float32 [3, 1]; it must return float32 [1]",
        ),
        (np.zeros(5, dtype=np.float32), "returned float32 [5]"),
        (np.zeros(1, dtype=np.int64), "returned int64 [1]"),
        ([0.5], "returned list"),
        (None, "returned NoneType"),
        (Scored(np.zeros(1, dtype=np.float32), {7: "x"}), "failures name rows [7]"),
    ],
)
def test_a_result_of_the_wrong_form_is_a_failure_that_says_so(result: Any, reason: str) -> None:
    assert reason in reasons(outcomes(lambda images, prompts: result, ("a",)))[0]


def test_a_wrong_shape_is_scored_again_row_by_row() -> None:
    results = outcomes(lambda images, prompts: np.full(1, len(prompts), dtype=np.float32))
    assert results == [1.0, 1.0, 1.0]


def test_a_model_is_called_at_most_once_more_than_rows() -> None:
    model = Model(lambda images, prompts: None)
    checked_scores(model, np.zeros((3, 4, 4, 3), dtype=np.uint8), ["a", "b", "c"])
    assert model.calls == 4


def test_a_reason_is_one_bounded_line() -> None:
    def act(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        raise RuntimeError("no\n memory " * 1000)

    (reason,) = reasons(outcomes(act, ("a",)))
    assert reason.startswith("RuntimeError: no memory no")
    assert len(reason) <= 400
    assert "\n" not in reason


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 4, 3), dtype=np.float32),
        np.zeros((2, 3, 4, 4), dtype=np.uint8),
        np.zeros((1, 4, 4, 3), dtype=np.uint8),
    ],
)
def test_the_callers_own_mistakes_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="rewards take uint8"):
        checked_scores(Model(lengths), images, ["a", "b"])
