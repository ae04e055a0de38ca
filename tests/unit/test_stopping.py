"""When a run ends early and which version is kept: rules against hand-made histories."""

from collections.abc import Mapping

import pytest

from deploy.evaluation.stopping import (
    Measured,
    best_of,
    diversity_below,
    held_out_falls,
    kl_above,
    why_stop,
)
from deploy.settings.sections import DiversityBelow, HeldOutFalls, KlAbove


def history(*values: float, name: str = "score") -> list[Measured]:
    """Evaluations of cycles 0, 5, 10, …"""
    return [Measured(5 * i, {name: value}) for i, value in enumerate(values)]


def rows(**columns: tuple[float, ...]) -> list[Measured]:
    metrics: list[Mapping[str, float]] = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return [Measured(cycle, each) for cycle, each in enumerate(metrics)]


def fires(*values: float, patience: int = 2, min_gain: float = 0.0) -> bool:
    told = held_out_falls(history(*values), score="score", patience=patience, min_gain=min_gain)
    return told is not None


@pytest.mark.parametrize(
    ("values", "fired"),
    [
        ((), False),
        ((0.5,), False),
        ((0.5, 0.4), False),
        ((0.5, 0.4, 0.3), True),
        ((0.5, 0.5, 0.5), True),
        ((0.5, 0.4, 0.6, 0.5), False),
        ((0.5, 0.4, 0.6, 0.5, 0.5), True),
        ((0.1, 0.2, 0.3, 0.4), False),
    ],
)
def test_a_score_without_a_gain_ends_a_run_after_its_patience(
    values: tuple[float, ...], fired: bool
) -> None:
    assert fires(*values) is fired


def test_gains_too_small_to_count_count_once_they_add_up() -> None:
    assert fires(0.5, 0.54, 0.58, patience=2, min_gain=0.1)
    assert not fires(0.5, 0.54, 0.58, 0.62, patience=3, min_gain=0.1)


def test_the_reason_names_both_values_and_their_cycles() -> None:
    told = held_out_falls(history(0.5, 0.75, 0.25), score="score", patience=1, min_gain=0)
    assert told == (
        "score was 0.25 after cycle 10, and 0.75 after cycle 5: 1 evaluations were no better"
    )


def test_an_evaluation_without_the_score_is_passed_over() -> None:
    seen = [*history(0.5, 0.4), Measured(15, {}), Measured(20, {"other": 1.0})]
    assert held_out_falls(seen, score="score", patience=2, min_gain=0) is None
    assert held_out_falls(seen, score="score", patience=1, min_gain=0) is not None


@pytest.mark.parametrize(("newest", "fired"), [(1.0, False), (1.01, True)])
def test_the_kl_may_be_at_its_bound_but_not_above(newest: float, fired: bool) -> None:
    told = kl_above(history(0.0, newest, name="kl_nats"), nats=1.0)
    assert (told is not None) is fired


def test_a_kl_that_came_back_below_its_bound_does_not_end_the_run() -> None:
    assert kl_above(history(0.0, 3.0, 0.5, name="kl_nats"), nats=1.0) is None


@pytest.mark.parametrize(("newest", "fired"), [(1.0, False), (0.99, True)])
def test_diversity_is_held_against_that_of_the_untouched_policy(newest: float, fired: bool) -> None:
    told = diversity_below(history(2.0, 1.5, newest, name="diversity"), share=0.5)
    assert (told is not None) is fired


def test_the_best_version_has_the_highest_score() -> None:
    best = best_of(history(0.5, 0.9, 0.7), None, "score")
    assert best is not None
    assert best.cycle == 5


def test_of_equal_versions_the_earliest_is_kept() -> None:
    best = best_of(history(0.5, 0.9, 0.9), None, "score")
    assert best is not None
    assert best.cycle == 5


def test_the_untouched_policy_is_kept_where_nothing_is_better() -> None:
    best = best_of(history(0.5, 0.4, 0.3), HeldOutFalls(kind="held_out_falls"), "score")
    assert best is not None
    assert best.cycle == 0


@pytest.mark.parametrize(
    ("rule", "cycle"),
    [
        (None, 3),
        (KlAbove(kind="kl_above", nats=2.5), 2),
        (DiversityBelow(kind="diversity_below", share=0.75), 1),
        (DiversityBelow(kind="diversity_below", share=1.0), 0),
    ],
)
def test_a_version_beyond_the_bound_of_a_rule_is_not_the_best(
    rule: KlAbove | DiversityBelow | None, cycle: int
) -> None:
    seen = rows(
        score=(0.1, 0.2, 0.3, 0.4), kl_nats=(0.0, 1.0, 2.0, 3.0), diversity=(2.0, 1.6, 1.4, 1.2)
    )
    best = best_of(seen, rule, "score")
    assert best is not None
    assert best.cycle == cycle


def test_without_the_score_there_is_no_best() -> None:
    assert best_of(history(1.0), None, "other") is None


def test_the_rule_of_the_config_is_the_one_that_is_asked() -> None:
    seen = rows(score=(0.5, 0.4), kl_nats=(0.0, 2.0), diversity=(1.0, 0.1))
    told = [
        why_stop(seen, rule, "score")
        for rule in (
            None,
            HeldOutFalls(kind="held_out_falls", patience=1),
            KlAbove(kind="kl_above", nats=1.0),
            DiversityBelow(kind="diversity_below"),
        )
    ]
    assert [text and text.split()[0] for text in told] == [None, "score", "the", "diversity"]
