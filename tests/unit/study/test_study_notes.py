"""What the tables of a study have to be read with: runs that ended badly, or of other code."""

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.report.data import code_hash, versions
from deploy.settings.run_config import load_config
from deploy.study.file import Cell, Study
from deploy.study.notes import notes_on, unfinished_rows
from deploy.study.report import study_html
from deploy.study.sections import told_of


@pytest.fixture
def study() -> Study:
    return Study.model_validate(
        {"config": "deploy/configs/smoke.yaml", "seeds": [0, 1, 2], "arms": {"plain": []}}
    )


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    names = [f"plain-seed{seed}" for seed in range(3)]
    configs = [load_config("deploy/configs/smoke.yaml", [f"name={name}"]) for name in names]
    return [Cell("plain", config, ()) for config in configs]


def end(cell: Cell, **summary: Any) -> dict[str, Any]:
    cell.folder.mkdir()
    (cell.folder / "config.json").write_text(cell.config.to_json())
    (cell.folder / "summary.json").write_text(json.dumps(summary))
    return summary


def test_a_run_that_is_not_finished_stands_with_its_reason(cells: list[Cell]) -> None:
    assert unfinished_rows(cells, {}) == []
    end(cells[0], status="finished")
    end(cells[1], status="failed", reason="latents are not finite")
    cells[2].folder.mkdir()
    (cells[2].folder / "config.json").write_text(cells[2].config.to_json())
    assert unfinished_rows(cells, {"plain-seed1": 1})[1:] == [
        ["plain-seed1", "failed", "latents are not finite"],
        ["plain-seed2", "under way, or killed", ""],
    ]


def test_a_run_that_ended_before_it_began_stands_with_its_exit_status(cells: list[Cell]) -> None:
    assert unfinished_rows(cells, {"plain-seed0": 1})[1:] == [
        ["plain-seed0", "ended with status 1", ""]
    ]


def test_the_page_has_the_reasons(study: Study, cells: list[Cell]) -> None:
    end(cells[1], status="failed", reason="latents are not <finite>")
    results = {"plain": []}
    told = told_of(study, results, {}, {}, [], unfinished_rows(cells, {}))
    page = study_html("trial", study, results, told)
    assert "latents are not &lt;finite&gt;" in page


def test_runs_of_different_code_or_libraries_are_told_apart(
    study: Study, cells: list[Cell]
) -> None:
    known = [
        {"code": "a", "torch": "2", "platform": "Linux-6.1"},
        {"code": "b", "torch": "2", "platform": "Linux-6.1"},
        {"code": "a", "torch": "2", "platform": "Linux-6.18"},
    ]
    runs = [
        (cell, {"versions": each, "flops": {"sampling": 1.0}})
        for cell, each in zip(cells, known, strict=True)
    ]
    assert notes_on(study, {"plain": runs}) == [
        "runs were made with different versions of code: a (2), b (1)"
    ]
    assert notes_on(study, {"plain": runs[::2]}) == []


def test_operations_that_were_not_counted_are_told(study: Study, cells: list[Cell]) -> None:
    runs = [(cells[0], {"flops": {"sampling": 1.0}}), (cells[1], {"flops": {"policy": 1.0}})]
    assert notes_on(study, {"plain": runs}) == [
        "operations of sampling are not known, and not counted, of plain-seed1"
    ]


def test_a_run_that_spent_other_than_planned_is_told(study: Study, cells: list[Cell]) -> None:
    early = {"stopped_early": "the reward fell", "flops": {"sampling": 1.0}}
    again = {"reward_queries_again": 1200, "flops": {"sampling": 1.0}}
    runs = {"plain": [(cells[0], early)]}
    assert notes_on(study, runs, tried={"plain": [(cells[1], again)]}) == [
        "plain-seed1 may have asked for up to 1,200 scores more than it counts, which were queued "
        "again",
        "plain-seed0 ended before its last cycle: the reward fell",
    ]


def test_means_over_a_part_of_the_pictures_are_told(study: Study, cells: list[Cell]) -> None:
    scores = [({}, {"unscored": 0.125}), ({"reward": 1.0}, {"reward": 1.0})]
    runs = [
        (cell, {"flops": {"sampling": 1.0}, "before": before, "after": after})
        for cell, (before, after) in zip(cells, scores, strict=False)
    ]
    assert notes_on(study, {"plain": runs}) == [
        "12.5% of the scores in the evaluation after plain-seed0 failed, its means are over the "
        "others"
    ]


def test_the_hash_of_the_code_changes_with_what_decides_a_result_alone(tmp_path: Path) -> None:
    hashes = []
    for number, (name, text) in enumerate(
        [("learner/a.py", "1"), ("learner/a.py", "2"), ("deploy/report/b.py", "1")]
    ):
        root = tmp_path / str(number)
        for path, content in (("learner/a.py", "1"), (name, text)):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
        hashes.append(code_hash(root))
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(versions()["code"]) == 12
