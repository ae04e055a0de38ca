"""Evaluations beside training: a run that over-optimises is ended, and its best version is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
MANY = 300
CLIMB = (
    "seed=5",
    "rewards={bright: {kind: e2e_rewards:Brightness}}",
    "evaluation.rewards={dark: e2e_rewards:Darkness}",
    "evaluation.every_cycles=1",
    "method.learning_rate=1e-2",
    "method.anchor.data=none",
)
# Nothing gains so much, so the rule fires at its second evaluation beside training.
SOON = "evaluation.stop={kind: held_out_falls, patience: 2, min_gain: 1}"


OVERDONE = (
    *CLIMB,
    f"method.cycles={MANY}",
    "evaluation.best_by=dark_2step",
    "evaluation.stop={kind: held_out_falls, patience: 2}",
)


@pytest.fixture(scope="module")
def overdone(run_job: Callable[..., Ended]) -> Ended:
    """Trained on the opposite of what it is judged by."""
    ended = run_job("overdone", *OVERDONE)
    assert ended.status == 0, ended.output
    return ended


@pytest.fixture(scope="module")
def resumed(run_job: Callable[..., Ended]) -> tuple[dict[str, Any], Ended]:
    """What the first start has measured, and the second start without its rule."""
    settings = (*CLIMB, "evaluation.best_by=reward_2step")
    first = run_job("resumed", *settings, f"method.cycles={MANY}", SOON)
    assert first.status == 0, first.output
    told = evaluations(first)
    weights = first.folder / "kept" / f"cycle-{told['best']:06d}.safetensors"
    told["weights"] = weights.read_bytes() if told["best"] else None
    cycles = max(int(path.name[:8]) for path in (first.folder / "checkpoints").iterdir()) + 2
    again = run_job(
        "resumed", *settings, f"method.cycles={cycles}", job="resumed-again", resume=True
    )
    assert again.status == 0, again.output
    return told, again


def evaluations(ended: Ended) -> dict[str, Any]:
    return json.loads((ended.folder / "evaluations.json").read_text())


def curve(ended: Ended, name: str) -> dict[int, float]:
    return {
        point["step"]: point["values"][name]
        for point in ended.points
        if point["phase"] == "evaluation"
    }


def test_the_rule_ends_the_run_long_before_its_last_cycle(overdone: Ended) -> None:
    summary = overdone.summary
    assert summary["status"] == "finished"
    assert summary["stopped_early"].startswith("dark_2step was ")
    assert max(point["step"] for point in overdone.points) < MANY - 1
    assert (
        f"stopping after the policy's steps in hand: {summary['stopped_early']}" in overdone.output
    )


def test_the_score_has_fallen_while_the_reward_rose(overdone: Ended) -> None:
    dark, reward = curve(overdone, "dark_2step"), curve(overdone, "reward_2step")
    last = max(dark)
    assert dark[last] < dark[0]
    assert reward[last] > reward[0]


def test_what_is_left_is_the_best_of_all_that_was_measured(overdone: Ended) -> None:
    dark = curve(overdone, "dark_2step")
    best = max(dark, key=lambda step: dark[step])
    assert overdone.summary["exported_version"] == f"best, of cycle {best}"
    assert overdone.summary["after"]["dark_2step"] == pytest.approx(dark[best], abs=1e-6)


def test_every_evaluation_tells_the_signs_of_over_optimisation(overdone: Ended) -> None:
    names = {
        "dark_1step", "dark_2step", "reward_1step", "reward_2step", "diversity", "kl_nats",
        "clean_distance", "colour_entropy", "sharpness",
    }  # fmt: skip
    points = [point for point in overdone.points if point["phase"] == "evaluation"]
    assert len(points) >= 3
    assert [set(point["values"]) for point in points] == [names] * len(points)


def test_the_untouched_policy_has_no_drift_and_a_trained_one_has(overdone: Ended) -> None:
    for name in ("kl_nats", "clean_distance"):
        drift = curve(overdone, name)
        # Not 0: the two networks hold their weights in another order of memory.
        assert drift.pop(0) < 1e-5
        assert min(drift.values()) > 1e-5


def test_fresh_samples_tell_the_surrogates_rank_correlation(overdone: Ended) -> None:
    fresh = [p["values"] for p in overdone.points if p["phase"] == "fresh"]
    found = [v["fresh_rank_correlation_2step"] for v in fresh if "fresh_accuracy_2step" in v]
    assert found
    assert all(-1 <= value <= 1 for value in found)


def test_the_pictures_of_an_evaluation_are_of_the_same_prompts_as_the_first(
    overdone: Ended,
) -> None:
    pictures = overdone.folder / "pictures"
    names = sorted(path.stem for path in pictures.glob("cycle-*.npz"))
    assert names == [f"cycle-{each['cycle']:06d}" for each in evaluations(overdone)["evaluations"]]
    prompts = [np.load(pictures / f"{name}.npz")["prompts"].tolist() for name in ("before", *names)]
    assert all(each == prompts[0] for each in prompts)


def test_a_resumed_run_keeps_what_was_measured_and_measures_no_cycle_twice(
    resumed: tuple[dict[str, Any], Ended],
) -> None:
    told, again = resumed
    now = evaluations(again)["evaluations"]
    assert now[: len(told["evaluations"])] == told["evaluations"]
    for cycles in (
        [each["cycle"] for each in now],
        [point["step"] for point in again.points if point["phase"] == "evaluation"],
    ):
        assert cycles == sorted(set(cycles))


def test_a_resumed_run_keeps_its_best(resumed: tuple[dict[str, Any], Ended]) -> None:
    told, again = resumed
    reward = curve(again, "reward_2step")
    assert max(reward.values()) >= reward[told["best"]]
    assert again.summary["after"]["reward_2step"] == pytest.approx(max(reward.values()), abs=1e-6)
    best = evaluations(again)["best"]
    kept = [path.stem for path in (again.folder / "kept").glob("*")]
    assert kept == ([f"cycle-{best:06d}"] if best else [])
    if best == told["best"] and best:
        path = again.folder / "kept" / f"cycle-{best:06d}.safetensors"
        assert path.read_bytes() == told["weights"]


def test_a_run_that_goes_on_without_its_rule_is_not_stopped_early(
    resumed: tuple[dict[str, Any], Ended],
) -> None:
    assert resumed[1].summary["stopped_early"] is None


def test_the_same_seed_in_lockstep_gives_the_same_policy_with_and_without_evaluations(
    run_job: Callable[..., Ended],
) -> None:
    lockstep = ("seed=5", "pace=lockstep", "actors.groups_per_batch=1")
    alone = run_job("unwatched", *lockstep)
    watched = run_job("watched", *lockstep, "evaluation.every_cycles=1")
    assert (alone.status, watched.status) == (0, 0), watched.output
    weights = [
        load_file(ended.folder / "adapter" / "pytorch_lora_weights.safetensors")
        for ended in (alone, watched)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_its_rule_has_ended_ends_again_with_its_result_where_it_is_resumed(
    overdone: Ended, run_job: Callable[..., Ended]
) -> None:
    before = overdone.summary
    again = run_job("overdone", *OVERDONE, job="overdone-again", resume=True)
    assert again.status == 0, again.output
    for name in ("status", "stopped_early", "exported_version", "after"):
        assert again.summary[name] == before[name]
