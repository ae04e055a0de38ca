"""Each admission rule is played as a small run: its invariant holds, and nobody waits for ever."""

import pytest

from buffer.admission import (
    check_phase,
    limit_by_inserts,
    limit_by_staleness,
    limit_by_window,
    may_draw,
)


def test_no_more_than_the_window_is_open() -> None:
    issued = finished = 0
    while finished < 20:
        issued = max(issued, limit_by_window(num_finished=finished, max_open=3))
        assert issued - finished == 3
        finished += 1


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_no_group_is_staler_than_allowed_when_it_is_trained(max_staleness: int) -> None:
    per_update, made_with = 3, []
    for version in range(12):
        limit = limit_by_staleness(
            policy_version=version, groups_per_update=per_update, max_staleness=max_staleness
        )
        made_with += [version] * (limit - len(made_with))
        # The update that makes the next version has its groups: nobody waits for ever.
        trained = made_with[version * per_update : (version + 1) * per_update]
        assert len(trained) == per_update
        assert all(version - made <= max_staleness for made in trained)


def test_staleness_zero_is_on_policy() -> None:
    assert limit_by_staleness(policy_version=0, groups_per_update=8, max_staleness=0) == 8


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_samplers_and_learner_keep_the_ratio_and_both_go_on(ratio: float) -> None:
    size, batch, min_groups, slack = 4, 8, 4, 2
    issued = drawn = 0
    for _ in range(200):
        limit = limit_by_inserts(
            num_drawn=drawn,
            group_size=size,
            samples_per_insert=ratio,
            min_groups=min_groups,
            slack=slack,
        )
        assert limit >= issued
        issued = limit
        while may_draw(
            num_committed=issued * size,
            num_drawn=drawn,
            batch=batch,
            samples_per_insert=ratio,
            min_records=min_groups * size,
            slack_records=5 * batch,
        ):
            drawn += batch
    assert issued > 100
    ahead = (min_groups + slack) * size
    assert drawn <= ratio * (issued * size + 5 * batch)
    assert issued * size <= drawn / ratio + ahead


def test_nothing_is_drawn_before_the_first_groups_are_there() -> None:
    assert not may_draw(
        num_committed=15,
        num_drawn=0,
        batch=1,
        samples_per_insert=9.0,
        min_records=16,
        slack_records=0,
    )


@pytest.mark.parametrize(
    ("rule", "arguments", "deadlock"),
    [
        (limit_by_window, {"num_finished": 0, "max_open": 0}, "no group may ever be issued"),
        (
            limit_by_staleness,
            {"policy_version": 0, "groups_per_update": 0, "max_staleness": 0},
            "without groups never ends",
        ),
        (
            limit_by_staleness,
            {"policy_version": 0, "groups_per_update": 1, "max_staleness": -1},
            "both would wait",
        ),
        (
            limit_by_inserts,
            {
                "num_drawn": 0,
                "group_size": 1,
                "samples_per_insert": 0.0,
                "min_groups": 1,
                "slack": 1,
            },
            "samplers wait",
        ),
        (
            limit_by_inserts,
            {
                "num_drawn": 0,
                "group_size": 1,
                "samples_per_insert": 1.0,
                "min_groups": 1,
                "slack": 0,
            },
            "none may be issued",
        ),
        (
            may_draw,
            {
                "num_committed": 0,
                "num_drawn": 0,
                "batch": 9,
                "samples_per_insert": 1.0,
                "min_records": 4,
                "slack_records": 4,
            },
            "first batch could wait",
        ),
        (check_phase, {"groups": 3, "group_size": 6, "capacity_records": 17}, "evicted before"),
        (check_phase, {"groups": 0, "group_size": 6, "capacity_records": 17}, "nothing in it"),
    ],
)
def test_a_bad_value_names_the_deadlock(rule, arguments: dict[str, float], deadlock: str) -> None:
    with pytest.raises(ValueError, match=deadlock):
        rule(**arguments)


def test_a_phase_that_fills_the_replay_exactly_fits() -> None:
    check_phase(groups=3, group_size=6, capacity_records=18)
