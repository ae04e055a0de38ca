"""How many tickets may be issued: pure rules, each an invariant over counts.

A rule returns a *limit*: tickets with a smaller number may be issued. The controller admits the
smallest limit of its rules, so adding a rule never loosens another. Counts come from
`records.Counters` and the learner. Nothing here knows what a record holds.

A failed or dropped group counts as finished and as trained in every rule: one that did not would
take its place in the window for ever, and the samplers would starve.
"""


def limit_by_window(*, num_finished: int, max_open: int) -> int:
    """At most `max_open` groups are issued and not finished: sampling, queued or being scored.

    Guarantees that the memory of what waits for scoring is bounded. Does not bound how far samplers
    run ahead of the learner: that is `limit_by_inserts` or `limit_by_staleness`.

    Args:
        num_finished: `Counters.progress`.
    """
    if max_open < 1:
        raise ValueError(
            f"max_open is {max_open}: no group may ever be issued, and the learner waits for "
            "ever; give at least 1, better the number of samplers"
        )
    return num_finished + max_open


def limit_by_staleness(*, policy_version: int, groups_per_update: int, max_staleness: int) -> int:
    """A group issued now is trained on at most `max_staleness` updates after its policy was made.

    Groups are trained in the order of their tickets, `groups_per_update` at a time: ticket n
    belongs to update n // groups_per_update, which needs version >= that - max_staleness.
    `max_staleness=0` is on-policy: the next groups wait for the next version.

    Does not look at versions in fact sampled: a sampler must use the ticket's version or newer.
    """
    if groups_per_update < 1:
        raise ValueError(
            f"groups_per_update is {groups_per_update}: an update without groups never ends the "
            "wait for the next version; give at least 1"
        )
    if max_staleness < 0:
        raise ValueError(
            f"max_staleness is {max_staleness}: groups of an update would need a policy that only "
            "this update makes, and both would wait; give at least 0"
        )
    return (policy_version + max_staleness + 1) * groups_per_update


def limit_by_inserts(
    *, num_drawn: int, group_size: int, samples_per_insert: float, min_groups: int, slack: int
) -> int:
    """Each record is drawn `samples_per_insert` times on average; samplers wait for the learner.

    Beyond the `min_groups` that the learner waits for at first, issued records are at most
    num_drawn / samples_per_insert + slack groups. Does not guarantee that a *given* record is
    drawn, and does not hold the learner back: that is `may_draw`.

    Args:
        num_drawn: records that the learner has drawn so far.
        slack: groups that samplers may be ahead of the ratio.
    """
    _check_ratio(samples_per_insert)
    if slack < 1:
        raise ValueError(
            f"slack is {slack}: after the first {min_groups} groups none may be issued before the "
            "learner has drawn, and it may wait for them to draw; give at least 1"
        )
    paid_groups = int(num_drawn / (samples_per_insert * group_size))
    return min_groups + paid_groups + slack


def may_draw(
    *,
    num_committed: int,
    num_drawn: int,
    batch: int,
    samples_per_insert: float,
    min_records: int,
    slack_records: int,
) -> bool:
    """The other half of `limit_by_inserts`: the learner waits for the samplers.

    True while, after `min_records`, another `batch` keeps the records drawn within
    samples_per_insert times (those committed + `slack_records`).
    """
    _check_ratio(samples_per_insert)
    if (min_records + slack_records) * samples_per_insert < batch:
        raise ValueError(
            f"batch {batch} is more than ({min_records} + {slack_records}) records may be drawn "
            f"at {samples_per_insert} samples per insert: the first batch could wait for records "
            "that are only issued after it; raise min_records or slack_records"
        )
    if num_committed < min_records:
        return False
    return num_drawn + batch <= samples_per_insert * (num_committed + slack_records)


def check_phase(*, groups: int, group_size: int, capacity_records: int) -> None:
    """A phase that the learner reads as a whole fits into the replay.

    Otherwise its first records are evicted by its last ones.
    """
    if groups < 1 or group_size < 1:
        raise ValueError(f"a phase of {groups} groups of {group_size} records has nothing in it")
    if groups * group_size > capacity_records:
        raise ValueError(
            f"a phase has {groups} x {group_size} = {groups * group_size} records but the replay "
            f"keeps {capacity_records}: its first records would be evicted before the learner "
            "reads them; raise capacity_records or lower the phase"
        )


def _check_ratio(samples_per_insert: float) -> None:
    if not samples_per_insert > 0:
        raise ValueError(
            f"samples_per_insert is {samples_per_insert}: the learner may never draw and the "
            "samplers wait for it; give a number above 0"
        )
