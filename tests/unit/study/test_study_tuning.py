"""The tries of a study's arms, and which is chosen."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.study.file import Cell, Study, cells_of, load_study, tries_of
from deploy.study.tables import refuse_unknown_scores
from deploy.study.tuning import Chosen, Tried, choices_json, choose, tuning_rows
from tests.unit.study.trial import TUNED, finish


def rates(cells: list[Cell]) -> dict[str, float]:
    return {cell.config.name: cell.config.method.learning_rate for cell in cells}


def test_the_best_try_of_an_arm_is_run_with_every_seed_and_ablations_take_it_over(
    tuned: Study, tmp_path: Path
) -> None:
    tries = tries_of(tuned, "trial")
    assert rates(tries["plain"]) == {"trial-plain-try0": 1e-4, "trial-plain-try1": 2e-4}
    both = [*tries["plain"], *tries["no-anchor"]]
    assert {(cell.config.seed, cell.config.method.cycles) for cell in both} == {(7, 1)}
    finish(tries["plain"][0], tmp_path, 0.5, 0.6)
    finish(tries["plain"][1], tmp_path, 0.5, 0.7)
    finish(tries["no-anchor"][0], tmp_path, 0.5, 0.6, status="failed")
    chosen = choose(tuned, "trial", tries, tmp_path)
    assert chosen["plain"].values == ("method.learning_rate=2e-4",)
    assert chosen["plain"].tries == (Tried(0.6, 100, 5.0), Tried(0.7, 100, 5.0))
    assert chosen["no-anchor"].values is None
    rows = tuning_rows(tuned, chosen)
    assert rows[1:3] == [
        ["plain", "method.learning_rate=1e-4", "0.6000", "100", "5.0", ""],
        ["plain", "method.learning_rate=2e-4", "0.7000", "100", "5.0", "yes"],
    ]
    assert rows[3][2:] == ["none", "–", "–", ""]
    best = {arm: told.values for arm, told in chosen.items() if told.values is not None}
    cells = cells_of(tuned, "trial", best)
    assert {cell.arm for cell in cells} == {"plain", "last"}  # no try of the third has a score
    assert set(rates(cells).values()) == {2e-4}
    assert {cell.config.method.cycles for cell in cells} != {1}


@pytest.mark.parametrize(
    ("rates", "mark"),
    [
        (["1e-4", "3e-5", "1e-5"], "yes, least method.learning_rate of all"),
        (["1e-4", "1e-5", "3e-5"], "yes"),
        (["1e-5", "3e-5", "1e-4"], "yes, most method.learning_rate of all"),
        (["1e-4", "3e-5"], "yes"),
    ],
)
def test_a_choice_at_the_end_of_what_was_tried_is_marked(rates: list[str], mark: str) -> None:
    """The last is chosen."""
    tries = tuple((f"method.learning_rate={rate}", "method.anchor.data=none") for rate in rates)
    told = {"config": "c.yaml", "seeds": [0], "arms": {"plain": {"tries": tries}}}
    study = Study.model_validate(told | {"tuning": {"seed": 7, "score": "exact_2step"}})
    tried = tuple(Tried(float(number)) for number in range(len(tries)))
    rows = tuning_rows(study, {"plain": Chosen(tries[-1], tried)})
    assert [row[5] for row in rows[1:]] == [*[""] * (len(tries) - 1), mark]


def test_a_choice_that_runs_have_begun_with_stays(tuned: Study, tmp_path: Path) -> None:
    tries, folder = tries_of(tuned, "trial"), tmp_path / "runs" / "trial"
    finish(tries["plain"][0], tmp_path, 0.5, 0.6)
    folder.mkdir()
    first = choose(tuned, "trial", tries, folder)["plain"]
    (folder / "tuning.json").write_text(choices_json({"plain": first}))
    finish(tries["plain"][1], tmp_path, 0.5, 0.9)  # it had failed, and was tried again
    better = choose(tuned, "trial", tries, folder)["plain"]
    assert (better.values, better.kept) == (("method.learning_rate=2e-4",), False)
    begun = cells_of(tuned, "trial", {"plain": first.values or ()})[0]
    begun.folder.mkdir()
    (begun.folder / "config.json").write_text(begun.config.to_json())
    chosen = choose(tuned, "trial", tries, folder)
    assert (chosen["plain"].values, chosen["plain"].kept) == (first.values, True)
    kept = "yes, kept, as its runs had begun when a better one ended"
    assert [row[5] for row in tuning_rows(tuned, {"plain": chosen["plain"]})[1:]] == [kept, ""]


def test_a_quick_run_takes_the_first_try_and_tunes_nothing(tuned: Study) -> None:
    quick = tuned.quickly()
    assert tries_of(quick, "quick") == {}
    assert set(rates(cells_of(quick, "quick")).values()) == {1e-4}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", [method.learning_rate=3e-4]", "", "as many tries"),
        ("tuned_as: plain", "tuned_as: nobody", "no arm with tries of its own"),
        ("tuned_as: plain", "tuned_as: plain, tries: [[]]", "drop one"),
        ("seed: 7", "seed: 1", "one of the study's own seeds"),
        ("tuning: {seed: 7, score: exact_2step, settings: [method.cycles=1]}", "", "is chosen"),
        ("against: plain", "against: nobody", "nobody is no arm"),
        ("tuned_as: plain", "tuned_as: last", "no arm with tries of its own"),
        ("learning_rate=2e-4", "learning_rate=1e-4", "a try of arm plain stands twice"),
    ],
)
def test_unequal_tuning_is_refused(file: Path, old: str, new: str, message: str) -> None:
    assert old in TUNED
    file.write_text(TUNED.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_study(file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[method.learning_rate=3e-4]",
            "[method.learning_rate=3e-4, actors.group_size=8]",
            "tries need as many reward queries",
        ),
        ("against: plain", "budget: {reward_queries: 9}", "a try plans .* budget of a run is 9"),
    ],
)
def test_tries_that_ask_for_unlike_numbers_of_scores_are_refused(
    tuned: Study, file: Path, old: str, new: str, message: str
) -> None:
    assert tries_of(tuned, "trial")
    file.write_text(TUNED.replace(old, new))
    with pytest.raises(ValueError, match=message):
        tries_of(load_study(file), "trial")


def test_runs_of_an_earlier_choice_are_checked_before_further_tries_run(
    tuned: Study, file: Path, tmp_path: Path
) -> None:
    tries, folder = tries_of(tuned, "trial"), tmp_path / "runs" / "trial"
    for cell in (*tries["plain"], *tries["no-anchor"]):
        finish(cell, tmp_path, 0.5, 0.6)
    folder.mkdir()
    chosen = choose(tuned, "trial", tries, folder)
    (folder / "tuning.json").write_text(choices_json(chosen))
    best = {arm: told.values for arm, told in chosen.items() if told.values}
    finish(cells_of(tuned, "trial", best)[-1], tmp_path, 0.5, 0.6)
    more = TUNED.replace("=2e-4]]", "=2e-4], [method.learning_rate=3e-4]]").replace(
        "=3e-4]]\n  last", "=3e-4], [method.learning_rate=4e-4]]\n  last"
    )
    for text, status in ((more, 0), (more.replace("reward_steps=last", "reward_steps=all"), 2)):
        file.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "deploy.study", str(file), "--check"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
    assert "trial-last-seed1 holds a run with other settings (method.reward_steps" in done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("score: exact_2step", "score: exact_3step"),
        ("scores: [exact_2step]", "scores: [exact_3step]"),
        ("scores: [exact_2step, diversity]", "scores: [exact_3step, diversity]"),
    ],
)
def test_a_score_that_no_run_measures_is_refused_before_anything_runs(
    tuned: Study, file: Path, old: str, new: str
) -> None:
    refuse_unknown_scores(tuned, "trial")
    assert old in TUNED
    file.write_text(TUNED.replace(old, new))
    with pytest.raises(ValueError, match="no run measures exact_3step; there are clean_distance"):
        refuse_unknown_scores(load_study(file), "trial")


def test_a_wrong_try_is_refused_before_any_of_them_runs(tuned: Study, file: Path) -> None:
    file.write_text(TUNED.replace("learning_rate=3e-4", "learning_rate=-3"))
    done = subprocess.run(
        [sys.executable, "-m", "deploy.study", str(file), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "arm no-anchor" in done.stderr
