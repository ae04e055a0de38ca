"""The cluster file of `ray up` and the commands of deploy/bare_metal.md, by Ray's own judgement."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy"
TEXT = (FOLDER / "bare_metal.md").read_text(encoding="utf-8")
CLUSTER: dict[str, Any] = yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())


def started() -> list[str]:
    """Every `ray start` of document and cluster file, without what stands before it."""
    lines = re.sub(r"\\\n\s*", "", TEXT).splitlines()
    commands = [*CLUSTER["head_start_ray_commands"], *CLUSTER["worker_start_ray_commands"]]
    found = [re.search(r"(?<!`)\bray start --.*", line) for line in [*lines, *commands]]
    return [each.group().split("`")[0] for each in found if each]


@pytest.mark.slow
def test_ray_takes_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(CLUSTER))


@pytest.mark.parametrize("change", [{"max_worker": 3}, {"provider": {}}, {"auth": "key"}])
def test_ray_refuses_a_cluster_file_with_a_mistake(change: dict[str, Any]) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError):
        validate_config({**CLUSTER, **change})


@pytest.mark.parametrize("command", started())
def test_ray_knows_every_flag_of_a_start(command: str) -> None:
    from ray.scripts.scripts import start

    words = shlex.split(command, comments=True)[2:]
    context = start.make_context("start", words, resilient_parsing=False)
    assert isinstance(context, click.Context)


def test_there_are_a_head_and_a_worker_in_each() -> None:
    kinds = ["--head" in command for command in started()]
    assert sorted(kinds) == [False, False, True, True]


def test_ray_waits_long_enough_for_a_job_that_is_stopped() -> None:
    for text in (TEXT, *CLUSTER["head_start_ray_commands"][1:]):
        assert "RAY_JOB_STOP_WAIT_TIME_S=90" in text


def test_no_secret_is_in_the_cluster_file() -> None:
    text = (FOLDER / "ray-cluster.yaml").read_text()
    assert not re.search(r"(RAY_AUTH_TOKEN|REDIS_URL)=", text)
