"""`python -m deploy.bench` on a tiny pipeline: that it works and what it writes, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Pipelines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "codec",
    "replay",
    "shards",
    "index",
    "sampler",
    "decode",
    "rewards",
    "learner",
    "sqdf",
    "pace",
    "run",
}
SUMMARY = {
    "wall_s": 10.0,
    "learner_seconds": {"policy": 2.0},
    "workers": {"sampler-0": {"owner": "sampler-0.0", "images": 3, "sample_s": 4.0}},
}


@pytest.fixture(scope="module")
def out(
    tmp_path_factory: pytest.TempPathFactory, pipelines: Pipelines, environ: dict[str, str]
) -> Path:
    """The folder of results; `stdout` beside them is what the command printed."""
    folder = tmp_path_factory.mktemp("bench")
    run = tmp_path_factory.mktemp("run")
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    command = [sys.executable, "-m", "deploy.bench", "--few", "--repeats", "1", "--out", folder]
    done = subprocess.run(
        [*command, "--pipeline", pipelines.student, "--run", run],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_the_last_line_is_json_of_every_benchmark(out: Path) -> None:
    assert set(json.loads((out / "stdout").read_text().splitlines()[-1])) == NAMES


def test_every_rate_is_a_positive_number(out: Path) -> None:
    rows = [row for name in NAMES - {"run"} for row in _content(out, name)["rows"]]
    assert [row for row in rows if row["unit"] != "%" and not row["rate"]["median"] > 0] == []


def test_every_result_tells_its_machine_and_versions(out: Path) -> None:
    for name in NAMES:
        content = _content(out, name)
        assert content["machine"]["processor"]
        assert content["machine"]["cores"] >= 1
        assert content["versions"]["torch"]


def test_the_sampler_is_compared_with_the_pipeline(out: Path) -> None:
    ways = {row["way"]: row["ratio"] for row in _content(out, "sampler")["rows"]}
    assert ways["fleetune"]["median"] > 0
    assert ways["diffusers, text states"] is None


def test_more_servers_are_compared_with_one(out: Path) -> None:
    rows = _content(out, "shards")["rows"]
    assert {row["way"]: row["ratio"] is None for row in rows} == {
        "4 servers": False,
        "2 servers": False,
        "1 server": True,
    }


def test_the_reference_codes_way_of_sqdf_is_what_ours_is_compared_with(out: Path) -> None:
    ratios = {(row["unit"], row["way"]): row["ratio"] for row in _content(out, "sqdf")["rows"]}
    assert {way for _, way in ratios} == {"stored reference noise", "reference"}
    assert ratios["MB", "reference"] is None
    assert ratios["MB", "stored reference noise"]["median"] > 0


def test_the_time_of_a_run_is_told_in_shares(out: Path) -> None:
    rows = {(row["work"], row["way"]): row["ratio"] for row in _content(out, "run")["rows"]}
    assert rows["sampler-0", "sample"]["median"] == 0.4
    assert rows["learner", "policy"]["median"] == 0.2


def test_the_page_has_a_table_of_every_benchmark(out: Path) -> None:
    page = (out / "README.md").read_text()
    assert [name for name in NAMES if f"\n## {name}\n" not in page] == []


def _content(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"{name}.json").read_text())
