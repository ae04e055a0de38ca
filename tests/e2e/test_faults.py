"""Killed processes of a run, beside a run that is left alone; `make faults` is the long one."""

from pathlib import Path
from typing import Any

import pytest

from deploy.drills import faults

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(900)]


# The seeds are those whose schedules kill the process that each case is about.
@pytest.fixture(
    scope="module",
    params=[
        ("driver", {"seed": 0}),
        ("redis", {"seed": 10, "shards": 2}),
        ("learner", {"seed": 10, "ranks": 2}),
    ],
    ids=["one of each", "two servers", "two ranks"],
)
def figures(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("faults")
    kind, options = request.param
    return {**faults.drill(folder, kills=4, **options), "about": kind}


def test_as_many_processes_were_killed_as_asked(figures: dict[str, Any]) -> None:
    assert figures["kills"] == 4
    assert figures["about"] in figures["killed"]


def test_every_record_is_accounted_for(figures: dict[str, Any]) -> None:
    ended = figures["committed"] + figures["quarantined"] + figures["open"]
    assert figures["issued"] == ended > 0
    assert (figures["lost"], figures["duplicated"], figures["quarantined"]) == (0, 0, 0)


def test_the_policy_is_that_of_the_run_that_was_left_alone(figures: dict[str, Any]) -> None:
    assert figures["same_policy"]
