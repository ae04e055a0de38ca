"""Where Ray is asked to place the actors of a fleet, by their options alone."""

from pathlib import Path

import pytest

from deploy.run.controller import fleet_options
from deploy.settings.run_config import load_config
from deploy.settings.sections import Actors, RewardFleet, Scoring

CONFIGS = Path(__file__).resolve().parents[2] / "deploy" / "configs"


@pytest.mark.parametrize("num_gpus", [0, 1, 2])
@pytest.mark.parametrize("part", [Actors, Scoring, RewardFleet])
def test_whoever_shares_no_gpu_is_spread(
    part: type[Actors | Scoring | RewardFleet], num_gpus: float
) -> None:
    options = fleet_options(part(num_cpus=0.5, num_gpus=num_gpus))
    assert options == {"num_cpus": 0.5, "num_gpus": num_gpus, "scheduling_strategy": "SPREAD"}


@pytest.mark.parametrize("num_gpus", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("part", [Actors, Scoring, RewardFleet])
def test_whoever_shares_a_gpu_is_packed_by_ray(
    part: type[Actors | Scoring | RewardFleet], num_gpus: float
) -> None:
    options = fleet_options(part(num_gpus=num_gpus, node_labels={"role": "reward"}))
    assert options == {
        "num_cpus": 1.0, "num_gpus": num_gpus, "label_selector": {"role": "reward"},
    }  # fmt: skip


def test_reward_servers_of_a_preset_leave_whole_gpus_to_its_samplers() -> None:
    config = load_config(CONFIGS / "sd15-sqdf-hps.yaml", ["name=n"])
    assert 0 < config.scoring.num_gpus < 1
    assert "scheduling_strategy" not in fleet_options(config.scoring)
    assert fleet_options(config.actors)["scheduling_strategy"] == "SPREAD"
