"""A run is held to the prompts that it began with: on every node, and when it is resumed."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.run.folder import RunFolder
from deploy.run.plan import check_environment
from deploy.run.prompt_checks import pinned, readable_prompts
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import RunConfig, load_config
from deploy.study.file import Cell

SMOKE = "deploy/configs/smoke.yaml"
LINES = [{"prompt": "a cat", "legs": 4}, {"prompt": "a hen", "legs": 2}, {"prompt": "an ant"}]
CHANGES = {
    "one more": [*LINES, {"prompt": "a dog"}],
    "one less": LINES[:2],
    "another order": LINES[::-1],
    "another text": [{"prompt": "a cow", "legs": 4}, *LINES[1:]],
    "other metadata": [{"prompt": "a cat", "legs": 3}, *LINES[1:]],
}


def write(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    write(path, LINES)
    return path


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path))
    return {"FLEETUNE_RUNS": str(tmp_path)}


def given(file: Path, source: str) -> RunConfig:
    return load_config(SMOKE, ["name=mine", f"{source}={file}"])


def as_read(config: RunConfig) -> RunConfig:
    return pinned(config, readable_prompts(config)[0])


@pytest.mark.parametrize("change", CHANGES)
def test_a_process_that_reads_other_prompts_says_so(file: Path, change: str) -> None:
    source = as_read(given(file, "prompts")).prompts
    assert prompt_set(source, 0).prompts == ("a cat", "a hen", "an ant")
    write(file, CHANGES[change])
    with pytest.raises(ValueError, match=r"prompts\.jsonl holds other prompts here, of digest "):
        prompt_set(source, 0)


def test_the_same_prompts_written_otherwise_are_the_same(file: Path) -> None:
    source = as_read(given(file, "prompts")).prompts
    rows = [{"legs": 4, "prompt": " a cat "}, *LINES[1:]]
    file.write_text("\r\n\r\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert len(prompt_set(source, 0).prompts) == 3


@pytest.mark.parametrize("source", ["prompts", "evaluation.prompts"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_is_not_resumed_with_other_prompts(
    file: Path, environ: dict[str, str], source: str, change: str
) -> None:
    config = given(file, source)
    folder = RunFolder(config.run_folder(environ))
    folder.open(as_read(config), resume=False)
    assert folder.changed(as_read(config)) == []
    write(file, CHANGES[change])
    assert [problem.path for problem in folder.changed(as_read(config))] == [f"{source}.digest"]
    told = [text for text in check_environment(config, environ, resume=True) if ".digest" in text]
    assert len(told) == 1


def test_prompts_that_cannot_be_read_are_told_once(file: Path, environ: dict[str, str]) -> None:
    config = given(file, "prompts")
    RunFolder(config.run_folder(environ)).open(as_read(config), resume=False)
    file.unlink()
    told = [text for text in check_environment(config, environ, resume=True) if "prompts" in text]
    assert len(told) == 1
    assert told[0].startswith("prompts.file: cannot read")


def test_a_study_does_not_take_the_digest_for_another_setting(
    file: Path, environ: dict[str, str]
) -> None:
    config = given(file, "prompts")
    RunFolder(config.run_folder(environ)).open(as_read(config), resume=False)
    assert Cell("plain", config, ()).changed_settings() == []
    other = load_config(SMOKE, ["name=mine", f"prompts={file}", "seed=7"])
    assert Cell("plain", other, ()).changed_settings() == ["seed: 0, not 7"]


def test_a_digest_of_a_config_is_held_to_before_anything_starts(
    file: Path, environ: dict[str, str]
) -> None:
    config = load_config(SMOKE, [f"prompts={{file: {file}, digest: '0123456789abcdef'}}"])
    told = [text for text in check_environment(config, environ) if text.startswith("prompts")]
    assert len(told) == 1
    assert "than those of digest 0123456789abcdef" in told[0]
