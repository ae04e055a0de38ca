"""Cycles that tell a policy nothing: each leaves its policy steps out, many in a row end a run."""

MOST_IN_A_ROW = 5
"""Cycles that tell nothing, one after the other, which end a run: chance, in small groups or with
rewards that fail now and then, hardly makes so many."""


class NothingToLearnError(LookupError):
    """The samples carry no learning signal: no picture ranks above another.

    Its text says why, and what to do.
    """


def no_signal(lack: str) -> NothingToLearnError:
    """Rewards that tell no picture from another.

    Args:
        lack: what there is none of therefore.
    """
    return NothingToLearnError(
        f"{lack}: look at the reward, which may tell nothing apart, or raise actors.group_size"
    )


def most_in_a_row(cycles: int) -> int:
    """Cycles that tell nothing of which the last one ends a run.

    A run of fewer cycles ends by this when all of them told nothing: its result would be the
    untouched policy.

    Args:
        cycles: of the whole run.
    """
    return min(MOST_IN_A_ROW, cycles)
