"""A study's file and the runs that it asks for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.settings.run_config import load_config
from deploy.study.before import measured_by, take_before
from deploy.study.file import Cell, cells_of, load_study
from tests.unit.study.trial import TEXT, finish

STUDIES = sorted((Path(__file__).resolve().parents[3] / "deploy" / "studies").glob("*.yaml"))


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
