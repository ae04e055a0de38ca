"""Curves of a study's runs, and what they spend to reach a score."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.run.curves import Point
from deploy.settings.run_config import RunConfig, load_config
from deploy.study.curves import Reached, band, queries_before, reach_rows, reached
from deploy.study.file import Cell, Reach, Study
from deploy.study.tables import refuse_unknown_scores

REACH = Reach(score="reward_2step", at=0.5, rounds=2)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config("deploy/configs/smoke.yaml", ["method.cycles=3"])


def points_of(rewards: Sequence[float], *, cycle_s: float = 10.0) -> list[Point]:
    """A run that prepares for 100 s; then a cycle's steps, and its samples when it ends."""
    before = [
        Point(0, 0.0, "evaluation", {"reward_2step": 0.9}),
        Point(0, 100.0, "pretrain", {"reward_2step": 0.9}),
    ]
    cycles = [
        point
        for cycle, reward in enumerate(rewards)
        for point in (
            Point(cycle, 100.0 + cycle_s * (cycle + 0.5), "policy", {"loss": 1.0}),
            Point(cycle, 100.0 + cycle_s * (cycle + 1), "fresh", {"reward_2step": reward}),
        )
    ]
    return before + cycles


def test_queries_are_those_of_what_a_version_has_learned_from(config: RunConfig) -> None:
    spent = [queries_before(config, cycle) for cycle in range(4)]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[-1] == config.planned_queries


def test_fresh_samples_stand_where_the_version_that_made_them_does(config: RunConfig) -> None:
    points = [Point(0, 1.0, "fresh", {"reward": 0.5}), Point(1, 1.0, "evaluation", {"exact": 0.5})]
    ((fresh, *_),) = band([(config, points)], "fresh", "reward")
    ((held_out, *_),) = band([(config, points)], "evaluation", "exact")
    assert fresh == held_out == queries_before(config, 1) > 0


def fresh(rewards: Sequence[float]) -> list[Point]:
    return [Point(cycle, 1.0, "fresh", {"reward": reward}) for cycle, reward in enumerate(rewards)]


def test_a_band_is_the_mean_of_the_runs_and_half_its_interval(config: RunConfig) -> None:
    runs = [(config, fresh([reward])) for reward in (0.2, 0.3, 0.7)]
    ((_, mean, half),) = band(runs, "fresh", "reward")
    # t(0.975, 2) = 4.3027; the deviations are -0.2, -0.1 and 0.3.
    assert (mean, half) == pytest.approx((0.4, 4.3027 * math.sqrt(0.07 / 3)), abs=1e-4)


def test_a_band_goes_as_far_as_all_runs_have_points(config: RunConfig) -> None:
    runs = [(config, fresh([0.1, 0.2, 0.3])), (config, fresh([0.3, 0.2]))]
    places = [place for place, *_ in band(runs, "fresh", "reward")]
    assert places == [queries_before(config, cycle) for cycle in (1, 2)]


def test_a_score_is_reached_by_the_mean_of_so_many_rounds(config: RunConfig) -> None:
    found = reached(REACH, config, points_of([0.2, 0.6, 0.4]))
    assert found == Reached(cycles=3, queries=queries_before(config, 3), seconds=30.0)
    assert reached(REACH, config, points_of([0.2, 0.6, 0.3])) is None


def test_what_comes_before_the_cycles_reaches_nothing(config: RunConfig) -> None:
    assert reached(REACH, config, points_of([])) is None
    assert reached(REACH, config, points_of([0.9])) is None


def test_a_score_of_no_round_is_never_reached(config: RunConfig) -> None:
    assert (
        reached(REACH.model_copy(update={"score": "other"}), config, points_of([0.9] * 3)) is None
    )


@pytest.fixture
def study() -> Study:
    return Study.model_validate(
        {
            "config": "deploy/configs/smoke.yaml",
            "seeds": [0, 1],
            "arms": {"slow": [], "fast": [], "never": []},
            "against": "slow",
            "reach": {"score": "reward_2step", "at": 0.5, "rounds": 1},
        }
    )


def run_of(folder: Path, arm: str, seed: int, points: Sequence[Point]) -> tuple[Cell, dict]:
    values = (f"seed={seed}", f"name={arm}{seed}", "method.cycles=3")
    cell = Cell(arm, load_config("deploy/configs/smoke.yaml", values), values)
    cell.folder.mkdir(parents=True)
    lines = "".join(json.dumps(vars(point)) + "\n" for point in points)
    (cell.folder / "metrics.jsonl").write_text(lines)
    return cell, {}


def test_the_table_compares_seed_by_seed_those_that_reach_the_score(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    slow, fast = points_of([0.1, 0.6], cycle_s=30.0), points_of([0.1, 0.6], cycle_s=10.0)
    low = points_of([0.1, 0.2])
    results = {
        "slow": [run_of(tmp_path, "slow", 0, slow), run_of(tmp_path, "slow", 1, slow)],
        "fast": [run_of(tmp_path, "fast", 0, fast), run_of(tmp_path, "fast", 1, low)],
        "never": [run_of(tmp_path, "never", 0, low)],
    }
    head, *rows = reach_rows(study, results)
    assert head[0] == "reward_2step of 0.5"
    queries = f"{queries_before(results['fast'][0][0].config, 2):,}"
    assert rows == [
        ["slow", "2/2", "2.0", queries, "60", "1.00 (1.00–1.00)"],
        ["fast", "1/2", "2.0", queries, "20", "3.00 (3.00–3.00)"],
        ["never", "0/1", "never", "never", "never", "–"],
    ]


def test_of_several_ratios_the_median_and_the_range_are_told(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    results = {
        arm: [
            run_of(tmp_path, arm, seed, points_of([0.6], cycle_s=cycle_s))
            for seed, cycle_s in enumerate(all_s)
        ]
        for arm, all_s in (("slow", (20.0, 30.0, 80.0)), ("fast", (10.0, 30.0, 10.0)))
    }
    assert reach_rows(study, results)[2][-1] == "2.00 (1.00–8.00)"


def test_a_study_without_a_score_to_reach_has_no_such_table(study: Study) -> None:
    assert reach_rows(study.model_copy(update={"reach": None}), {}) == []


def test_a_score_that_no_fresh_sample_has_is_refused(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    refuse_unknown_scores(study, "trial")
    reach = REACH.model_copy(update={"score": "exact_2step"})  # measured on held-out prompts alone
    with pytest.raises(ValueError, match="exact_2step of fresh samples; there are reward_1step"):
        refuse_unknown_scores(study.model_copy(update={"reach": reach}), "trial")
