"""A study's file, its runs, and the table of those that are finished."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.study import Cell, Study, cells_of, csv_of, load_study, table

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
    summary = {
        "status": status,
        "before": {"exact_2step": before, "diversity": 1.0},
        "after": {"exact_2step": after, "diversity": 1.0},
        "reward_queries": 100,
        "flops": {"sampling": 2e12, "policy": 3e12},
        "wall_s": 10.0,
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
    rows = table(study, cells).splitlines()
    assert rows[0] == "| arm | runs | exact_2step | reward queries | TFLOPs | wall s |"
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)
    assert rows[2] == f"| plain | 2/2 | 0.500 → 0.700 (+0.200 ± {half:.3f}) | 100 | 5.0 | 10 |"
    assert rows[3] == "| no-anchor | 0/2 |  |  |  |  |"


def test_the_csv_has_a_line_for_every_score_of_a_finished_run(
    study: Study, cells: list[Cell], tmp_path: Path
) -> None:
    finish(cells[0], tmp_path, 0.5, 0.6)
    assert csv_of(study, cells).splitlines()[1:] == ["plain,0,exact_2step,0.5,0.6,100,5.0,10.0"]


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
