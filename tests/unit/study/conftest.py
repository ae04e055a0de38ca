"""A study with two arms, and one whose arms are tuned."""

from pathlib import Path

import pytest

from deploy.study.file import Cell, Study, cells_of, load_study
from tests.unit.study.trial import TEXT, TUNED


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


@pytest.fixture
def tuned(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "runs"))
    file.write_text(TUNED)
    return load_study(file)
