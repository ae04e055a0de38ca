"""Killed processes of a run, beside a run that is left alone; `make faults` is the long one."""

from pathlib import Path
from typing import Any

import pytest

from deploy.drills import faults

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=[1, 2], ids=["one server", "two servers"])
def figures(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("faults")
    return faults.drill(folder, kills=4, seed=0, shards=request.param)


def test_as_many_processes_were_killed_as_asked(figures: dict[str, Any]) -> None:
    assert figures["kills"] == 4


def test_every_record_is_accounted_for(figures: dict[str, Any]) -> None:
    ended = figures["committed"] + figures["quarantined"] + figures["open"]
    assert figures["issued"] == ended > 0
    assert (figures["lost"], figures["duplicated"], figures["quarantined"]) == (0, 0, 0)


def test_the_policy_is_that_of_the_run_that_was_left_alone(figures: dict[str, Any]) -> None:
    assert figures["same_policy"]
