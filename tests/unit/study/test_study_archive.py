"""A study's finished runs in one file: unpacked elsewhere, they are finished there, too."""

import json
import tarfile
from pathlib import Path

import pytest

from deploy.report.data import versions
from deploy.run.curves import read_points
from deploy.run.files import BEFORE_FILE, METRICS_FILE
from deploy.settings.run_config import load_config
from deploy.study.archive import write_archive
from deploy.study.before import take_before
from deploy.study.file import Cell

POINT = {"step": 0, "wall_s": 1.5, "phase": "fresh", "values": {"reward_2step": 0.5}}


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """A finished run and two that are not."""
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "here"))
    configs = [load_config("deploy/configs/smoke.yaml", [f"seed={n}", f"name=r{n}"]) for n in "123"]
    cells = [Cell("plain", config, ()) for config in configs]
    for cell, status in zip(cells, ("finished", "stopped", "failed"), strict=True):
        summary = {"status": status, "exported": str(cell.folder / "unet"), "versions": versions()}
        cell.folder.mkdir(parents=True)
        (cell.folder / "config.json").write_text(cell.config.to_json())
        (cell.folder / "summary.json").write_text(json.dumps(summary))
        (cell.folder / BEFORE_FILE).write_text('{"reward_2step": 0.25}')
        (cell.folder / METRICS_FILE).write_text(json.dumps(POINT) + "\n")
        (cell.folder / "checkpoints").mkdir()
        (cell.folder / "checkpoints" / "weights").write_bytes(b"many")
    return cells


def test_what_is_unpacked_elsewhere_is_finished_there(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "here" / "trial"
    study.mkdir()
    (study / "tuning.json").write_text('{"plain": {"values": ["a=1"]}}')
    write_archive(cells, study)
    before = cells[0].summary
    assert before is not None
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "there"))
    with tarfile.open(study / "runs.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    assert cells[0].summary == {**before, "exported": None}
    assert cells[0].changed_settings() == []
    assert [point.values for point in read_points(cells[0].folder / METRICS_FILE)] == [
        POINT["values"]
    ]
    # A choice that runs had begun with would otherwise be made anew.
    known = tmp_path / "there" / "trial" / "tuning.json"
    assert known.read_text() == (study / "tuning.json").read_text()
    assert not cells[1].folder.exists()
    assert not (cells[0].folder / "checkpoints").exists()
    # Another run takes the untouched policy's scores from it, as from one that was run there.
    cells[1].folder.mkdir()
    assert take_before(cells[1], cells)


def test_the_same_runs_are_the_same_bytes(cells: list[Cell], tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        (cells[0].folder / METRICS_FILE).touch()
        write_archive(cells, tmp_path)
        written.append((tmp_path / "runs.tar.xz").read_bytes())
    assert written[0] == written[1]
