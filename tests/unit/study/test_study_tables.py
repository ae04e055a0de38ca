"""The tables and the page of a study, of those of its runs that are finished."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from deploy.markdown import markdown
from deploy.run.files import pictures_file
from deploy.study.file import Cell, Study, cells_of, load_study
from deploy.study.notes import beyond_budget
from deploy.study.plots import colour_of, style_of
from deploy.study.report import study_html
from deploy.study.sections import told_of
from deploy.study.tables import (
    csv_of,
    difference_rows,
    finished,
    front_rows,
    hypervolume,
    pareto,
    rows_of,
)
from tests.unit.study.trial import TEXT, finish


def test_the_table_holds_the_changes_of_finished_runs_and_their_spread(
    study: Study, cells: list[Cell], tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    finish(cells[2], tmp_path, 0.5, 0.8)
    finish(cells[1], tmp_path, 0.5, 0.9, status="failed")
    rows = markdown(rows_of(study, finished(study, cells))).splitlines()
    costs = "reward queries | reward gradients | sampling TFLOPs | learner TFLOPs | wall s"
    assert rows[0] == f"| arm | runs | exact_2step | {costs} |"
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)
    assert (
        rows[2]
        == f"| plain | 2/2 | 0.500 → 0.700 (+0.200 ± {half:.3f}) | 100 | 0 | 2.0 | 3.0 | 10 |"
    )
    assert rows[3] == "| no-anchor | 0/2 | – | – | – | – | – | – |"


def test_the_csv_has_a_line_for_every_score_of_a_finished_run(
    study: Study, cells: list[Cell], tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    assert csv_of(study, finished(study, cells)).splitlines()[1:] == [
        "plain,0,exact_2step,0.5,0.6,100,0,5.0,10.0"
    ]


def differences_of(study: Study, tmp_path: Path, ends: dict[tuple[str, int], float]) -> list[str]:
    """The row of `last`, where the runs of an arm and a seed end so."""
    cells = cells_of(study, "trial")
    for cell in cells:
        if (end := ends.get((cell.arm, cell.config.seed))) is not None:
            finish(cell, tmp_path, 0.5, end)
    head, row = difference_rows(study, finished(study, cells))
    assert head == ["less plain", "seeds", "exact_2step"]
    return row


def test_differences_are_taken_seed_by_seed(tuned: Study, tmp_path: Path) -> None:
    ends = {("plain", 0): 0.6, ("plain", 1): 0.8, ("last", 0): 0.5, ("last", 1): 0.9}
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)
    assert differences_of(tuned, tmp_path, ends) == ["last", "2", f"+0.000 ± {half:.3f}"]


def test_an_arm_that_ends_higher_than_the_other_has_a_positive_difference(
    tuned: Study, tmp_path: Path
) -> None:
    ends = {("plain", 0): 0.6, ("plain", 1): 0.8, ("last", 0): 0.7, ("last", 1): 1.0}
    half = 12.706 * math.sqrt(0.005) / math.sqrt(2)
    assert differences_of(tuned, tmp_path, ends) == ["last", "2", f"+0.150 ± {half:.3f}"]


def test_a_score_that_an_arm_does_not_measure_is_a_dash(tuned: Study, tmp_path: Path) -> None:
    study = tuned.model_copy(update={"scores": ("exact_2step", "exact_8step")})
    cells = cells_of(study, "trial")
    for cell in cells:
        finish(cell, tmp_path, 0.5, 0.6)
    results = finished(study, cells)
    assert [row[3] for row in rows_of(study, results)] == ["exact_8step", "–", "–", "–"]
    assert [row[3] for row in difference_rows(study, results)] == ["exact_8step", "–", "–"]


def with_a_longer_chain(tuned: Study, tmp_path: Path) -> tuple[Study, list[Cell]]:
    """The arm `last` draws in four steps; all runs are finished."""
    longer = tuned.arms["last"].model_copy(update={"settings": ("model.num_steps=4",)})
    study = tuned.model_copy(update={"arms": {**tuned.arms, "last": longer}})
    cells = cells_of(study, "trial")
    for cell in cells:
        finish(cell, tmp_path, 0.5, 0.6)
    return study, cells


def test_a_step_of_a_chain_is_not_held_against_that_of_a_longer_one(
    tuned: Study, tmp_path: Path
) -> None:
    longer = tuned.arms["last"].model_copy(update={"settings": ("model.num_steps=4",)})
    arms = {**tuned.arms, "last": longer}
    study = tuned.model_copy(
        update={"arms": arms, "scores": ("exact_2step", "diversity", "kl_nats")}
    )
    cells = cells_of(study, "trial")
    for cell in cells:
        finish(cell, tmp_path, 0.5, 0.6)
    results = finished(study, cells)
    assert [row[2] for row in rows_of(study, results)[1:]] == ["0.500 → 0.600 (+0.100 ± 0.000)"] * 3
    assert [row[2:] for row in difference_rows(study, results)[1:]] == [
        ["+0.000 ± 0.000"] * 3,
        ["–", "+0.000 ± 0.000", "–"],
    ]


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
    assert rows[1][:5] == ["exact_2step × diversity", "plain", "2", "1", "0.9000"]
    assert rows[2][1:5] == ["no-anchor", "1", "0", "–"]


def test_families_are_held_against_one_seed_by_seed(tuned: Study, tmp_path: Path) -> None:
    cells = cells_of(tuned, "trial")
    ends = {("plain", 0): 0.6, ("plain", 1): 0.8, ("last", 0): 0.7, ("last", 1): 1.0}
    for cell in cells:
        if (end := ends.get((cell.arm, cell.config.seed))) is not None:
            finish(cell, tmp_path, 0.5, end)
    told = {row[1]: row[5] for row in front_rows(tuned, finished(tuned, cells))}
    half = 12.706 * math.sqrt(0.005) / math.sqrt(2)
    assert told == {
        "family": "less plain", "plain": "itself", "last": f"+0.1500 ± {half:.4f}", "no-anchor": "–"
    }  # fmt: skip


def test_an_area_under_a_step_s_score_is_not_held_against_that_of_a_longer_chain(
    tuned: Study, tmp_path: Path
) -> None:
    study, cells = with_a_longer_chain(tuned, tmp_path)
    told = {row[1]: row[5] for row in front_rows(study, finished(study, cells))[1:]}
    assert told == {"plain": "itself", "last": "–", "no-anchor": "+0.0000 ± 0.0000"}


def test_an_arm_that_computes_more_or_less_than_the_budget_is_told(
    cells: list[Cell], file: Path, tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)  # 5 TFLOPs
    less, more = ([f"plain spent 5.0 TFLOPs, the budget is {budget}"] for budget in ("6.0", "4.0"))
    for tflops, told in ((6, less), (5, []), (4, more)):
        file.write_text(f"{TEXT}budget: {{reward_queries: 1000000, tflops: {tflops}}}\n")
        study = load_study(file)
        assert beyond_budget(study.budget, finished(study, cells)) == told


def page_of(name: str, study: Study, cells: list[Cell]) -> str:
    results = finished(study, cells)
    return study_html(name, study, results, told_of(study, results, {}, {}, [], []))


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
    html = page_of("<trial>", tuned, cells)
    assert "&lt;trial&gt;" in html
    assert "2 of 6 runs finished" in html
    for title in (
        "exact_2step, held out",
        "reward_2step, fresh samples",
        "exact_2step × diversity",
    ):
        assert f'alt="{title}"' in html
    assert "no-anchor" in html


def test_the_page_shows_pictures_of_every_arm_beside_what_as_many_steps_began_with(
    tuned: Study, tmp_path: Path
) -> None:
    study, cells = with_a_longer_chain(tuned, tmp_path)
    for cell in cells:
        for moment in ("before", "after"):
            path = pictures_file(cell.folder, moment)
            path.parent.mkdir(exist_ok=True)
            np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8), prompts=["a dog", "a <cat>"])
    html = page_of("trial", study, cells)
    grid = html[html.index('<table class="pictures">') :]
    columns = re.findall("<th>(.*?)</th>", grid[: grid.index("</tr>")])
    assert columns == ["", "before, 2 steps", "plain", "no-anchor", "before, 4 steps", "last"]
    assert grid.count("<img") == 2 * 5
    assert "a &lt;cat&gt;" in grid


def test_a_table_s_cells_stay_in_their_row() -> None:
    assert markdown([["arm", "reason"], ["plain", "a | b\nc"]]).splitlines()[2] == (
        "| plain | a \\| b c |"
    )


def test_arms_of_one_colour_have_other_lines_and_marks() -> None:
    drawn = [(colour_of(number), *style_of(number)) for number in range(17)]
    assert len(set(drawn)) == 17
