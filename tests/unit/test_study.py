"""A study's file, its runs, its tuning, and the tables of those that are finished."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.markdown import markdown
from deploy.report.data import versions
from deploy.run_config import load_config
from deploy.study.before import measured_by, take_before
from deploy.study.file import (
    Cell,
    Study,
    cells_of,
    load_study,
    tries_of,
)
from deploy.study.report import study_html
from deploy.study.tables import (
    Chosen,
    beyond_budget,
    choose,
    csv_of,
    difference_rows,
    finished,
    front_rows,
    hypervolume,
    pareto,
    refuse_unknown_scores,
    rows_of,
    tuning_rows,
)

STUDIES = sorted((Path(__file__).resolve().parents[2] / "deploy" / "studies").glob("*.yaml"))
TEXT = """
config: deploy/configs/smoke.yaml
settings: [method.cycles=1]
seeds: [0, 1]
arms:
  plain: []
  no-anchor: [method.anchor.data=none, model.teacher=null]
scores: [exact_2step]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def study(file: Path) -> Study:
    return load_study(file)


@pytest.fixture
def cells(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "runs"))
    return cells_of(study, "trial")


def finish(
    cell: Cell, tmp_path: Path, before: float, after: float, status: str = "finished"
) -> None:
    folder = tmp_path / "runs" / cell.config.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(cell.config.to_json())
    summary = {
        "status": status,
        "before": {"exact_2step": before, "diversity": 1.0},
        "after": {"exact_2step": after, "diversity": 1.0},
        "reward_queries": 100,
        "flops": {"sampling": 2e12, "policy": 3e12},
        "wall_s": 10.0,
        "versions": versions(),
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def test_an_arm_may_have_a_preset_of_its_own_and_a_quick_run_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "mixed.yaml"
    path.write_text(
        "config: deploy/configs/smoke.yaml\nseeds: [3, 4]\nquick: [method.cycles=1]\narms:\n"
        "  plain: [method.policy_steps=3]\n"
        "  rlcm: {config: deploy/configs/shapes-rlcm.yaml, settings: [method.policy_steps=2],"
        " quick: [method.last_call=true]}\n"
    )
    whole = cells_of(load_study(path), "mixed")
    assert [cell.config.method.kind for cell in whole] == ["lasro", "ppo"] * 2
    assert [cell.config.method.policy_steps for cell in whole] == [3, 2] * 2
    assert whole[1].arguments[0] == "deploy/configs/shapes-rlcm.yaml"
    quick = cells_of(load_study(path).quickly(), "mixed-quick")
    names = [cell.config.name for cell in quick]
    assert names == ["mixed-quick-plain-seed3", "mixed-quick-rlcm-seed3"]
    assert {cell.config.method.cycles for cell in quick} == {1}
    assert quick[1].config.method.last_call  # pyright: ignore


def test_every_arm_is_run_with_every_seed_and_all_arms_of_a_seed_come_first(
    cells: list[Cell],
) -> None:
    names = [cell.config.name for cell in cells]
    assert names == [
        "trial-plain-seed0", "trial-no-anchor-seed0", "trial-plain-seed1", "trial-no-anchor-seed1",
    ]  # fmt: skip
    assert [cell.config.seed for cell in cells] == [0, 0, 1, 1]
    assert [cell.config.method.anchor.data for cell in cells[:2]] == ["generated", "none"]  # pyright: ignore
    assert {cell.config.method.cycles for cell in cells} == {1}


def test_a_run_is_begun_anew_or_gone_on_with(cells: list[Cell], tmp_path: Path) -> None:
    assert "--resume" not in cells[0].command(in_cluster=False)
    folder = tmp_path / "runs" / cells[0].config.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "--resume" in cells[0].command(in_cluster=False)
    assert cells[0].command(in_cluster=True)[1:3] == ["-m", "deploy.launch"]


def test_the_table_holds_the_changes_of_finished_runs_and_their_spread(
    study: Study, cells: list[Cell], tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    finish(cells[2], tmp_path, 0.5, 0.8)
    finish(cells[1], tmp_path, 0.5, 0.9, status="failed")
    rows = markdown(rows_of(study, finished(study, cells))).splitlines()
    costs = "reward queries | sampling TFLOPs | learner TFLOPs | wall s"
    assert rows[0] == f"| arm | runs | exact_2step | {costs} |"
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)
    assert (
        rows[2] == f"| plain | 2/2 | 0.500 → 0.700 (+0.200 ± {half:.3f}) | 100 | 2.0 | 3.0 | 10 |"
    )
    assert rows[3] == "| no-anchor | 0/2 |  |  |  |  |  |"


def test_the_csv_has_a_line_for_every_score_of_a_finished_run(
    study: Study, cells: list[Cell], tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    assert csv_of(study, finished(study, cells)).splitlines()[1:] == [
        "plain,0,exact_2step,0.5,0.6,100,5.0,10.0"
    ]


TUNED = """
config: deploy/configs/smoke.yaml
seeds: [0, 1]
tuning: {seed: 7, score: exact_2step, settings: [method.cycles=1]}
arms:
  plain:
    tries: [[method.learning_rate=1e-4], [method.learning_rate=2e-4]]
  no-anchor:
    settings: [method.anchor.data=none, model.teacher=null]
    tries: [[method.learning_rate=1e-4], [method.learning_rate=3e-4]]
  last: {settings: [method.reward_steps=last], tuned_as: plain}
against: plain
scores: [exact_2step]
fronts: [{scores: [exact_2step, diversity], reference: [0, 0]}]
"""


@pytest.fixture
def tuned(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "runs"))
    file.write_text(TUNED)
    return load_study(file)


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
    chosen = choose(tuned, tries, tmp_path)
    assert chosen["plain"].values == ("method.learning_rate=2e-4",)
    assert chosen["plain"].scores == (0.6, 0.7)
    assert chosen["no-anchor"].values is None
    rows = tuning_rows(tuned, chosen)
    assert rows[1:3] == [
        ["plain", "method.learning_rate=1e-4", "0.6000", ""],
        ["plain", "method.learning_rate=2e-4", "0.7000", "yes"],
    ]
    assert rows[3][2:] == ["none", ""]
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
    rows = tuning_rows(study, {"plain": Chosen(tries[-1], tuple(range(len(tries))))})
    assert [row[3] for row in rows[1:]] == [*[""] * (len(tries) - 1), mark]


def test_a_choice_that_runs_have_begun_with_stays(tuned: Study, tmp_path: Path) -> None:
    tries, folder = tries_of(tuned, "trial"), tmp_path / "runs" / "trial"
    finish(tries["plain"][0], tmp_path, 0.5, 0.6)
    folder.mkdir()
    first = choose(tuned, tries, folder)["plain"]
    (folder / "tuning.json").write_text(json.dumps({"plain": vars(first)}))
    finish(tries["plain"][1], tmp_path, 0.5, 0.9)  # it had failed, and was tried again
    assert choose(tuned, tries, folder)["plain"].values == ("method.learning_rate=2e-4",)
    begun = cells_of(tuned, "trial", {"plain": first.values or ()})[0]
    begun.folder.mkdir()
    (begun.folder / "config.json").write_text(begun.config.to_json())
    assert choose(tuned, tries, folder)["plain"].values == first.values


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
    ],
)
def test_unequal_tuning_is_refused(file: Path, old: str, new: str, message: str) -> None:
    assert old in TUNED
    file.write_text(TUNED.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_study(file)


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


def test_differences_are_taken_seed_by_seed(tuned: Study, tmp_path: Path) -> None:
    cells = cells_of(tuned, "trial")
    ends = {("plain", 0): 0.6, ("plain", 1): 0.8, ("last", 0): 0.5, ("last", 1): 0.9}
    for cell in cells:
        if (end := ends.get((cell.arm, cell.config.seed))) is not None:
            finish(cell, tmp_path, 0.5, end)
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)
    assert difference_rows(tuned, finished(tuned, cells)) == [
        ["less plain", "seeds", "exact_2step"],
        ["last", "2", f"+0.000 ± {half:.3f}"],
    ]


def test_a_score_that_an_arm_does_not_measure_is_a_dash(tuned: Study, tmp_path: Path) -> None:
    study = tuned.model_copy(update={"scores": ("exact_2step", "exact_8step")})
    cells = cells_of(study, "trial")
    for cell in cells:
        finish(cell, tmp_path, 0.5, 0.6)
    results = finished(study, cells)
    assert [row[3] for row in rows_of(study, results)] == ["exact_8step", "–", "–", "–"]
    assert [row[3] for row in difference_rows(study, results)] == ["exact_8step", "–", "–"]


def test_a_front_s_area_is_that_under_its_staircase() -> None:
    points = [[0.5, 0.8], [0.9, 0.2], [0.4, 0.4]]
    assert hypervolume(points, [0, 0]) == pytest.approx(0.5 * 0.8 + 0.4 * 0.2)
    assert hypervolume(points, [0.5, 0.1]) == pytest.approx(0.4 * 0.1)
    assert pareto(points) == [[0.5, 0.8], [0.9, 0.2]]


def test_a_family_s_hypervolume_is_taken_seed_by_seed(tuned: Study, tmp_path: Path) -> None:
    arms = {**tuned.arms, "last": tuned.arms["last"].model_copy(update={"family": "plain"})}
    study = tuned.model_copy(update={"arms": arms})
    cells = cells_of(study, "trial")
    for cell in cells:
        if cell.arm == "plain" or (cell.arm, cell.config.seed) == ("last", 0):
            finish(cell, tmp_path, 0.5, 0.9 if cell.arm == "last" else 0.6)
    rows = front_rows(study, finished(study, cells))
    # Of the second seed an arm is missing.
    assert rows[1] == ["exact_2step × diversity", "plain", "1", "0.9000"]
    assert rows[2][1:] == ["no-anchor", "0", ""]


def test_a_budget_binds_every_arm(file: Path) -> None:
    planned = cells_of(load_study(file), "trial")[0].config.planned_queries
    file.write_text(f"{TEXT}budget: {{reward_queries: {planned}, tflops: 5}}\n")
    assert len(cells_of(load_study(file), "trial")) == 4
    file.write_text(f"{TEXT}budget: {{reward_queries: {planned - 1}}}\n")
    with pytest.raises(ValueError, match=r"arm plain: plans .* reward queries"):
        cells_of(load_study(file), "trial")
    file.write_text(f"{TEXT}budget: {{reward_queries: {planned * 2}}}\n")
    with pytest.raises(ValueError, match="less at most 10%"):
        cells_of(load_study(file), "trial")


def test_an_arm_that_computes_more_than_the_budget_is_told(
    cells: list[Cell], file: Path, tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)  # 5 TFLOPs
    for tflops, told in ((5, []), (4, ["plain spent 5.0 TFLOPs, the budget is 4.0"])):
        file.write_text(f"{TEXT}budget: {{reward_queries: 1000000, tflops: {tflops}}}\n")
        study = load_study(file)
        assert beyond_budget(study.budget, finished(study, cells)) == told


def test_what_the_untouched_policy_scores_is_measured_once(
    cells: list[Cell], tmp_path: Path
) -> None:
    plain, other, *_ = cells
    assert not take_before(other, cells)  # nobody has measured it
    finish(plain, tmp_path, 0.5, 0.6)
    (plain.folder / "before.json").write_text('{"exact_2step": 0.5}')
    (plain.folder / "pictures").mkdir()
    (plain.folder / "pictures" / "before.npz").write_bytes(b"pictures")
    assert not take_before(plain, cells)  # it has its own
    alike = cells[2]
    assert measured_by(alike.config) == measured_by(plain.config)
    assert take_before(alike, cells)
    assert (alike.folder / "before.json").read_text() == '{"exact_2step": 0.5}'
    assert (alike.folder / "pictures" / "before.npz").read_bytes() == b"pictures"
    assert "--resume" not in alike.command(in_cluster=False)
    # What a start that came to nothing left there may be of other settings.
    (alike.folder / "before.json").write_text("{}")
    assert take_before(alike, cells)
    assert (alike.folder / "before.json").read_text() == '{"exact_2step": 0.5}'
    # Another number of samples is another measurement, and so are other libraries.
    values = [*alike.arguments[1:], "evaluation.samples=7", 'name="more"']
    more = Cell("plain", load_config(alike.arguments[0], values), ())
    assert not take_before(more, cells)
    summary = json.loads((plain.folder / "summary.json").read_text())
    (plain.folder / "summary.json").write_text(json.dumps({**summary, "versions": {}}))
    assert not take_before(cells[3], cells)


def test_a_run_with_other_settings_is_no_run_of_the_study(
    cells: list[Cell], file: Path, tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    assert cells[0].changed_settings() == []
    file.write_text(TEXT.replace("method.cycles=1]", "method.cycles=2]"))
    done = subprocess.run(
        [sys.executable, "-m", "deploy.study", str(file)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "trial-plain-seed0 holds a run with other settings (method.cycles: 1, not 2)" in (
        done.stderr
    )


def test_two_arms_with_the_same_runs_are_refused(file: Path) -> None:
    arms = "  plain: {runs: one}\n  other: {runs: one}\n"
    file.write_text(TEXT.replace("  plain: []\n", arms))
    with pytest.raises(ValueError, match="two arms have the same runs: one-seed0, one-seed1"):
        cells_of(load_study(file), "trial")


def test_two_studies_share_an_arm_by_the_name_of_its_runs(
    file: Path, tmp_path: Path, cells: list[Cell]
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    other = tmp_path / "second.yaml"
    other.write_text(TEXT.replace("plain: []", "first: {runs: trial-plain}"))
    shared = cells_of(load_study(other), "second")[0]
    assert (shared.arm, shared.config) == ("first", cells[0].config)
    assert shared.summary is not None


def test_the_page_shows_every_arm_and_what_is_not_finished(tuned: Study, tmp_path: Path) -> None:
    cells = cells_of(tuned, "trial")
    for cell in cells[:2]:
        finish(cell, tmp_path, 0.5, 0.6)
        lines = [
            {"step": step, "wall_s": 1.0, "phase": phase, "values": {name: 0.5}}
            for step in (0, 1)
            for phase, name in (("evaluation", "exact_2step"), ("fresh", "reward_2step"))
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (cell.folder / "metrics.jsonl").write_text(text)
    html = study_html("<trial>", tuned, finished(tuned, cells), {})
    assert "&lt;trial&gt;" in html
    assert "2 of 6 runs finished" in html
    for title in (
        "exact_2step, held out",
        "reward_2step, fresh samples",
        "exact_2step × diversity",
    ):
        assert f'alt="{title}"' in html
    assert "no-anchor" in html


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [0, 1]", "seeds: []", "seeds"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "a seed stands twice"),
        ("arms:", "legs:", "arms"),
        ("no-anchor: [method.anchor.data=none", "no-anchor: [method.ankor=none", ""),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(
    file: Path, old: str, new: str, message: str
) -> None:
    file.write_text(TEXT.replace(old, new))
    done = subprocess.run(
        [sys.executable, "-m", "deploy.study", str(file), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_config_names_its_arm(file: Path) -> None:
    file.write_text(TEXT.replace("method.anchor.data=none", "method.ankor=none"))
    with pytest.raises(ValueError, match=r"arm no-anchor: (.|\n)*ankor"):
        cells_of(load_study(file), "trial")


@pytest.mark.parametrize("text", ["", "[1, 2]", "config: [", "config: nowhere.yaml"])
def test_what_is_no_study_is_an_error_and_no_traceback(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError):  # noqa: PT011  each says something else
        load_study(file)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_has_configs_that_load(path: Path) -> None:
    study = load_study(path)
    cells = cells_of(study, path.stem)
    assert len(cells) == len(study.seeds) * len(study.arms)
    assert len(cells_of(study.quickly(), f"{path.stem}-quick")) == len(study.arms)
