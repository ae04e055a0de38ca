"""A small study on this machine: an arm that fails leaves the others their table."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Pipelines

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_failed_arm_is_told_and_the_others_go_on(
    pipelines: Pipelines, tmp_path: Path, environ: dict[str, str]
) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(
        f"config: {ROOT}/deploy/configs/smoke.yaml\n"
        f"settings: [{', '.join(pipelines.overrides)}, method.cycles=1]\n"
        "seeds: [3]\n"
        "arms:\n"
        "  plain: []\n"
        "  broken: [rewards.binding.kind=e2e_rewards:AlwaysRaises]\n"
        "  last: [method.reward_steps=last]\n"
        "scores: [exact_2step]\n"
    )
    command = [sys.executable, "-m", "deploy.study", str(file)]
    environ = {**environ, "FLEETUNE_RUNS": str(tmp_path / "runs")}

    def study(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *flags], env=environ, cwd=ROOT, capture_output=True, text=True
        )

    checked = study("--check")
    assert checked.returncode == 0, checked.stderr
    assert checked.stderr.count("deploy.local") == 3
    first = study()
    assert first.returncode == 1, first.stderr
    assert "pair-broken-seed3 ended with status 1" in first.stderr
    table = (tmp_path / "runs" / "pair" / "study.md").read_text()
    assert "| plain | 1/1 |" in table
    assert "| broken | 0/1 |" in table
    assert "| last | 1/1 |" in table
    assert "3 runs, 2 of them finished" in study("--check").stderr
