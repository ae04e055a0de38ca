"""`python -m deploy.bench.scale` with the least work: what it writes, not how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str]) -> Path:
    """The folder of results; `stdout` beside them is what the command printed."""
    folder = tmp_path_factory.mktemp("scale")
    few = ["--few", "--records", "2000", "--samplers", "4", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "deploy.bench.scale", *few, "--out", folder],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


@pytest.fixture
def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "stdout").read_text().splitlines()[-1])


def test_the_last_line_tells_the_share_of_linear(figures: dict[str, Any]) -> None:
    rates = figures["samples_per_s"]
    assert figures["linear_share_at_4"] == pytest.approx(rates["4"] / rates["1"] / 4, rel=0.01)


def test_every_size_of_run_has_a_cost(figures: dict[str, Any]) -> None:
    assert list(figures["us_per_sample"]) == ["1000", "2000"]
    for size, parts in figures["us_by_part"].items():
        served = parts["redis"] + parts["learner"]
        assert figures["us_per_sample"][size] == pytest.approx(served, rel=0.01)


def test_saturation_follows_from_the_largest_run(figures: dict[str, Any]) -> None:
    of_redis = figures["us_by_part"]["2000"]["redis"]
    assert figures["saturation"]["redis_samples_per_s"] == pytest.approx(1e6 / of_redis, rel=0.01)


def test_the_result_names_its_command(out: Path) -> None:
    content = json.loads((out / "scale.json").read_text())
    assert content["command"].startswith("python -m deploy.bench.scale --few")
