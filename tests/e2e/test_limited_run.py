"""A run that `limits.max_wall_s` ends, and the one that continues it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from learner import checkpoint

if TYPE_CHECKING:
    from tests.e2e.conftest import Ended

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT = "limits.max_wall_s"


@pytest.fixture(scope="module")
def limited(run_job: Callable[..., Ended]) -> Ended:
    return run_job("limited", "method.cycles=100000", f"{LIMIT}=30")


def test_a_run_at_its_limit_has_done_what_it_was_asked_to_do(limited: Ended) -> None:
    told = limited.summary["status"], limited.summary["reason"]
    assert told == ("stopped", f"{LIMIT} of 30 s is reached"), limited.output
    assert limited.status == 0


def test_a_run_goes_on_after_its_limit(limited: Ended, run_job: Callable[..., Ended]) -> None:
    newest = checkpoint.newest(limited.folder)
    cycles = checkpoint.place_of(newest)[0] + 2 if newest else 2
    more = f"method.cycles={cycles}", f"{LIMIT}=null"
    resumed = run_job("limited", *more, job="limited-again", resume=True)
    assert (resumed.status, resumed.summary["status"]) == (0, "finished"), resumed.output
    steps = [point["step"] for point in resumed.points if point["phase"] == "policy"]
    assert steps == list(range(cycles))
