"""Waits of the learner for what others make: what they are for, and how they end.

Ranks end a wait together. One alone would leave the others in their next collective until it times
out, and none could write a checkpoint, which takes all of them.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

from buffer.errors import ReplayError, ReplayFull, ReplayUnfit
from buffer.records import Counters
from buffer.replay import Replay
from learner.collectives import any_rank

_Answer = TypeVar("_Answer")
Cause = Literal["waiting_for_samplers", "waiting_for_rewards"]
"""What a wait for scored groups is for, as a phase of the learner's seconds."""


class StallError(RuntimeError):
    """Nothing arrived within the deadline, or the replay cannot be reached any more."""


class StoppedError(RuntimeError):
    """A wait was ended by `stop`."""


def held_up_by(num_missing: int, counters: Counters) -> Cause:
    """Who is waited for: reward servers where all that is missing may be with them already.

    Groups are sampled and scored in the order of their tickets, so those that are put and open are
    the missing ones first.
    """
    return "waiting_for_samplers" if num_missing > counters.open_tickets else "waiting_for_rewards"


def standing(replay: Replay, full: ReplayFull | None) -> str:
    """How a replay is, for an error; `full` where it refuses to issue tickets."""
    try:
        counts = f"the replay counts {replay.counters()}"
    except ReplayError as error:
        return f"the replay does not tell how it is: {error}"
    return counts if full is None else f"{counts}, and issues no tickets: {full}"


def on_all_ranks(ask: Callable[[], _Answer], when: str) -> _Answer:
    """What the replay answers this rank; every rank must call it.

    Args:
        when: it is asked, for the error.

    Raises:
        StallError: the replay has failed on this rank or on another.
        ReplayUnfit: it is not this run's to use any more: nothing is to be written for it either.
    """
    answers: list[_Answer] = []
    failure: ReplayError | None = None
    try:
        answers.append(ask())
    except ReplayError as error:
        failure = error
    if any_rank(failure is not None):
        if any_rank(isinstance(failure, ReplayUnfit)):
            raise failure or ReplayUnfit(f"another rank of the learner was refused {when}")
        told = failure or "another rank of the learner cannot reach it"
        raise StallError(f"the replay has failed {when}: {told}") from failure
    return answers[0]
