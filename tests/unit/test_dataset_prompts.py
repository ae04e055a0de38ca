"""Prompts of datasets: of a folder, of files, and what is refused. Needs the extra `hub`."""

import sys
from pathlib import Path
from typing import Any

import pytest

from actors.dataset_prompts import load_dataset_prompts
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.prompts import DatasetPrompts

COLUMNS = {"caption": ["a cat", "two dogs", "a fox"], "animals": [1, 2, 1], "x": [[1], [2], [3]]}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(COLUMNS)


def saved(table: Any, folder: Path, form: str) -> Path:
    folder.mkdir()
    if form == "folder of files":
        table.to_parquet(folder / "train-00000-of-00001.parquet")
        return folder
    if form == "save_to_disk":
        table.save_to_disk(folder / "saved")
        return folder / "saved"
    path = folder / f"prompts{form}"
    {".parquet": table.to_parquet, ".jsonl": table.to_json}[form](path)
    return path


@pytest.mark.parametrize("form", ["folder of files", "save_to_disk", ".parquet", ".jsonl"])
def test_a_dataset_is_read_in_the_order_of_its_rows(table: Any, tmp_path: Path, form: str) -> None:
    path = saved(table, tmp_path / "set", form)
    source = DatasetPrompts(
        kind="dataset", path=str(path), column="caption", metadata=("animals", "x")
    )
    found = prompt_set(source, 0)
    assert found.prompts == ("a cat", "two dogs", "a fox")
    assert found.table["two dogs"] == {"animals": 2, "x": (2,)}


def test_a_missing_column_is_told_with_those_that_are_there(table: Any, tmp_path: Path) -> None:
    path = str(saved(table, tmp_path / "set", ".parquet"))
    with pytest.raises(ValueError, match="has no column 'prompt', 'y'; it has caption, animals, x"):
        load_dataset_prompts(path, metadata=("y", "x"))


def test_an_empty_prompt_is_told_with_its_row(table: Any, tmp_path: Path) -> None:
    path = str(saved(table.map(lambda row: {"caption": ""}), tmp_path / "set", ".parquet"))
    with pytest.raises(ValueError, match="the prompt of row 0 is empty"):
        load_dataset_prompts(path, column="caption")


def test_a_missing_split_and_a_missing_dataset_are_told(table: Any, tmp_path: Path) -> None:
    path = str(saved(table, tmp_path / "set", "folder of files"))
    with pytest.raises(ValueError, match="cannot read the split 'test' of"):
        load_dataset_prompts(path, split="test")
    with pytest.raises(ValueError, match="cannot read the split 'train' of"):
        load_dataset_prompts("nobody/nothing")
    other = tmp_path / "prompts.xml"
    other.touch()
    with pytest.raises(ValueError, match=r"must end in \.parquet, \.arrow, \.jsonl, \.csv"):
        load_dataset_prompts(str(other))


def test_without_the_package_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[hub\]'"):
        load_dataset_prompts("owner/name")
