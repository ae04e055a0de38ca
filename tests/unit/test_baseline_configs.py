"""Configs of policy gradients and of reward gradients: their rounds, and what they cannot do."""

from pathlib import Path

import pytest

from deploy.config_problems import ConfigError
from deploy.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
PPO = SMOKE.with_name("shapes-ddpo.yaml")
RLCM = SMOKE.with_name("shapes-rlcm.yaml")
DRAFT = SMOKE.with_name("shapes-draft.yaml")


@pytest.mark.parametrize(
    ("preset", "override", "setting"),
    [
        (PPO, "actors.group_size=1", "actors.group_size"),
        (PPO, "replay.max_staleness=1", "replay.max_staleness"),
        (PPO, "replay.capacity_groups=100", "replay.capacity_groups"),
        (PPO, "method.kept_steps=51", "method.kept_steps"),
        (PPO, "method.last_call=true", "method.last_call"),
        (PPO, "method.micro_batches=3", "method.micro_batches"),
        (RLCM, "method.kept_steps=1", "method.kept_steps"),
        (RLCM, "model.num_steps=1", "model.num_steps"),
        (DRAFT, "model.num_steps=2", "model.num_steps"),
        (DRAFT, "method.last_steps=51", "method.last_steps"),
    ],
)
def test_what_a_baseline_cannot_do_is_told_before_it_starts(
    preset: Path, override: str, setting: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(preset, [override])
    assert [str(problem).split(":")[0] for problem in caught.value.problems] == [setting]


def test_on_policy_rounds_are_those_of_the_cycles_alone() -> None:
    method = load_config(RLCM, ["method.cycles=3", "method.groups_per_cycle=48"]).method
    assert [method.tickets_before(cycle) for cycle in range(3)] == [
        range(48),
        range(48, 96),
        range(96, 144),
    ]
    assert [len(method.tickets_after(cycle)) for cycle in range(3)] == [48, 48, 0]


def test_on_policy_samplers_never_run_ahead() -> None:
    assert load_config(RLCM, ["replay.max_staleness=null"]).max_staleness == 0
    assert load_config(SMOKE).max_staleness == 1
