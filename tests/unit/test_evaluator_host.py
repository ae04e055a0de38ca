"""The evaluator's actor: what it waits for before it measures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.evaluation.host import EvaluatorHost
from deploy.run.folder import RunFolder
from deploy.settings.run_config import load_config
from reward_servers.pool import PooledReward, UnavailableError
from reward_servers.timed import StalledError

SMOKE = Path(__file__).parents[2] / "deploy" / "configs" / "smoke.yaml"


class LateMembers:
    """A fleet of one server, which takes pictures from the `ready_at`-th time on."""

    def __init__(self, ready_at: float, hangs: bool) -> None:
        self.asked = 0
        self.hangs = hangs
        self._ready_at = ready_at

    def names(self) -> list[str]:
        return ["only"]

    def score(self, name: str, images: np.ndarray, prompts: list[str], timeout_s: float) -> list:
        self.asked += 1
        if self.asked < self._ready_at:
            raise UnavailableError
        return [0.5] * len(prompts)


class Asked:
    """In the place of the evaluator: how often the fleet had been asked when it began."""

    def __init__(self, config: Any, pools: dict[str, Any]) -> None:
        self._pools = pools

    def check_rewards(self) -> None:
        if self._pools["taste"]._members.hangs:
            raise StalledError("3 calls of reward 'taste' have not returned")

    def evaluate(self, weights: Any, pictures: Path) -> dict[str, float]:
        return {"asked": self._pools["taste"]._members.asked}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How often a fleet was asked before it measured; from the n-th time on it takes pictures."""
    monkeypatch.setattr("deploy.evaluation.evaluator.Evaluator", Asked)
    monkeypatch.setattr("reward_servers.pool._LOOK_AGAIN_S", 0.01)
    folder = RunFolder(tmp_path)
    folder.open(load_config(SMOKE, ["name=mine"]), resume=False)
    folder.write_cluster({"address": "head:6379", "node_ip": "10.0.0.1"})

    def measure(n: float, *overrides: str, hangs: bool = False) -> float:
        pools = {"taste": PooledReward("taste", LateMembers(n, hangs), timeout_s=0.01)}
        monkeypatch.setattr("deploy.evaluation.host.pooled_rewards", lambda config: pools)
        host = EvaluatorHost(load_config(SMOKE, overrides), folder.shared)
        return host.evaluate([], tmp_path / "before.npz")["asked"]

    return measure


def test_it_measures_when_every_fleet_of_a_reward_answers(asked: Any) -> None:
    assert asked(4) == 4


def test_it_measures_without_a_fleet_that_does_not_answer_for_long(
    asked: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert asked(float("inf"), "evaluation.timeout_s=0.4") > 1
    assert "reward taste may lack scores" in caplog.text


def test_its_process_ends_before_it_would_measure_without_a_reward_that_hangs(
    asked: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ended(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", ended)
    with pytest.raises(SystemExit, match="1"):
        asked(1, hangs=True)
    assert "3 calls of reward 'taste' have not returned" in caplog.text
