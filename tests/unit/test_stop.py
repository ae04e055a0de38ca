"""A run that is to stop before its end: how long it waits for its learner, and how it ends."""

import math

import pytest

from deploy.local_head import JOB_STOP_WAIT_S
from deploy.run.outcome import Outcome
from deploy.run.stop import Stop, patience_s
from deploy.settings.run_config import load_config
from deploy.settings.sections import Limits

JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}
STALL_S, PATIENCE_S = 600.0, 45.0


def stop(max_wall_s: float | None = 100.0) -> Stop:
    limits = Limits(max_wall_s=max_wall_s, stall_s=STALL_S)
    return Stop(limits, patience_s=PATIENCE_S, begun=1000.0)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({**JOB, "RAY_JOB_STOP_WAIT_TIME_S": "90"}, 45),
        ({**JOB, "RAY_JOB_STOP_WAIT_TIME_S": "900"}, 855),
        ({**JOB, "RAY_JOB_STOP_WAIT_TIME_S": "20"}, 10),
        (JOB, 1.5),
        ({}, 45),
    ],
)
def test_a_stopped_run_waits_as_long_as_ray_lets_it(
    environ: dict[str, str], seconds: float
) -> None:
    assert patience_s(environ) == seconds


def test_without_the_variable_ray_waits_for_as_long_as_it_is_taken_to() -> None:
    from ray.dashboard.modules.job.job_supervisor import JobSupervisor

    unset = JobSupervisor.DEFAULT_RAY_JOB_STOP_WAIT_TIME_S
    given = {**JOB, "RAY_JOB_STOP_WAIT_TIME_S": str(unset)}
    assert patience_s(JOB) == patience_s(given)


def test_a_local_run_leaves_time_to_end_in_order() -> None:
    environ = {**JOB, "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S)}
    assert JOB_STOP_WAIT_S - patience_s(environ) > 40


def test_the_learner_is_told_once_whatever_comes_after() -> None:
    rule = stop()
    told = [
        rule.is_new(now, asked=asked)
        for now, asked in [(1050, False), (1101, False), (1102, False), (1103, True), (1104, True)]
    ]
    assert told == [False, True, False, False, False]


def test_at_its_limit_a_run_waits_for_as_long_as_a_wait_may_take() -> None:
    rule = stop()
    assert rule.is_new(1101.0, asked=False)
    assert not rule.is_overdue(1101.0 + STALL_S - 1)
    assert rule.is_overdue(1101.0 + STALL_S)
    assert rule.is_by_limit
    assert rule.reason == "limits.max_wall_s of 100 s is reached"


def test_who_asks_after_the_limit_waits_no_longer_than_who_asks_before() -> None:
    rule = stop()
    rule.is_new(1101.0, asked=False)
    rule.is_new(1110.0, asked=True)
    assert not rule.is_overdue(1110.0 + PATIENCE_S - 1)
    assert rule.is_overdue(1110.0 + PATIENCE_S)
    assert not rule.is_by_limit


def test_a_limit_that_comes_after_the_wish_changes_nothing() -> None:
    rule = stop()
    rule.is_new(1090.0, asked=True)
    assert not rule.is_new(1101.0, asked=True)
    assert rule.is_overdue(1090.0 + PATIENCE_S)
    assert (rule.is_by_limit, rule.reason) == (False, "asked to stop")


def test_nothing_is_overdue_in_a_run_that_is_not_to_stop() -> None:
    rule = stop(max_wall_s=None)
    assert not rule.is_new(math.inf, asked=False)
    assert not rule.is_overdue(10.0**9)
    assert not rule.is_by_limit


@pytest.mark.parametrize(
    ("status", "by_limit", "exit_status"),
    [
        ("finished", False, 0),
        ("stopped", True, 0),
        ("stopped", False, 130),
        ("failed", False, 1),
        ("failed", True, 1),
    ],
)
def test_a_run_that_its_own_limit_ends_has_not_failed(
    status: str, by_limit: bool, exit_status: int
) -> None:
    outcome = Outcome(load_config("deploy/configs/smoke.yaml", []), 0, status=status)
    outcome.by_limit = by_limit
    assert outcome.exit_status == exit_status
    assert outcome.summary()["status"] == status


def test_a_run_that_fails_waits_for_its_learner_as_at_a_limit() -> None:
    rule = stop()
    rule.fail(1050.0)
    assert not rule.is_new(1051.0, asked=False)
    assert not rule.is_overdue(1050.0 + STALL_S - 1)
    assert rule.is_overdue(1050.0 + STALL_S)
    assert not rule.is_by_limit


def test_who_asks_a_run_that_fails_to_stop_waits_no_longer_than_else() -> None:
    rule = stop()
    rule.fail(1050.0)
    rule.is_new(1060.0, asked=True)
    assert rule.is_overdue(1060.0 + PATIENCE_S)
