"""How many tickets may be issued: a pure rule, an invariant over counts.

It returns a *limit*: tickets with a smaller number may be issued. The learner admits the smaller of
it and its own horizon. A failed or dropped group counts as finished: one that did not would take
its place in the window for ever, and the samplers would starve.
"""


def limit_by_window(*, num_finished: int, max_open: int) -> int:
    """At most `max_open` groups are issued and not finished: sampling, queued or being scored.

    Guarantees that the memory of what waits for scoring is bounded. Does not bound how far samplers
    run ahead of the learner: that is `learner.groups`' horizon.

    Args:
        num_finished: `Counters.progress`.
    """
    if max_open < 1:
        raise ValueError(
            f"max_open is {max_open}: no group may ever be issued, and the learner waits for "
            "ever; give at least 1, better the number of samplers"
        )
    return num_finished + max_open
