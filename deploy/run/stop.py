"""When a run is to stop before its end, and how long its driver then waits for the learner.

A learner that is asked to stop comes to a point where it can be saved, and saves itself. One that
is still busy when the patience is over is ended, and its run goes on from its newest checkpoint.
"""

import math
from collections.abc import Mapping

from deploy.settings.sections import Limits

# What is left to do once the learner has stopped: batches in hand are finished, servers write what
# they hold, and a summary and a report are written.
_ENDING_S = 45.0
# `DEFAULT_RAY_JOB_STOP_WAIT_TIME_S` in Ray's job supervisor, which no module of its own tells.
_RAYS_WAIT_S = 3.0
# As `deploy.local` and the clusters of this repository have it.
_USUAL_WAIT_S = 90.0


def patience_s(environ: Mapping[str, str]) -> float:
    """How long to wait for the learner of a run that is asked to stop from outside.

    Ray kills a job RAY_JOB_STOP_WAIT_TIME_S after it has asked it to stop, and without that
    variable after 3 s; the driver inherits it. What is left of it is for the run's own end, or
    half where it is too short for both. A driver that is no job is killed by nobody.
    """
    is_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in environ
    try:
        wait_s = float(int(environ["RAY_JOB_STOP_WAIT_TIME_S"]))
    except (KeyError, ValueError):
        wait_s = _RAYS_WAIT_S if is_job else _USUAL_WAIT_S
    return max(wait_s - _ENDING_S, wait_s / 2)


class Stop:
    """Whether a run is to stop: because it is asked to, or by `limits.max_wall_s`.

    Nobody is in a hurry at a limit, so the learner then has `limits.stall_s`. A wish from outside
    that comes later is as urgent as one that comes first.

    Args:
        patience_s: for the learner of a run that is asked to stop.
        begun: by the clock whose `now` the methods are given.

    Attributes:
        reason: why it is to stop; None: it is not.
    """

    def __init__(self, limits: Limits, *, patience_s: float, begun: float) -> None:
        self.reason: str | None = None
        self._limits = limits
        self._patience_s = patience_s
        self._begun = begun
        self._is_asked = self._has_failed = False
        self._until = math.inf

    def is_new(self, now: float, *, asked: bool) -> bool:
        """Whether the learner is to be told now.

        Args:
            asked: whether the run is asked to stop, now or before.
        """
        was_to_stop, limit_s = self.reason is not None, self._limits.max_wall_s
        if asked and not self._is_asked:
            self._is_asked, self.reason = True, "asked to stop"
            self._until = min(self._until, now + self._patience_s)
        elif not was_to_stop and limit_s is not None and now - self._begun > limit_s:
            self.reason = f"limits.max_wall_s of {limit_s:g} s is reached"
            self._until = now + self._limits.stall_s
        return self.reason is not None and not was_to_stop

    def fail(self, now: float) -> None:
        """The run ends for a reason outside the learner, which gets `limits.stall_s`, as at a
        limit."""
        if self.reason is None:
            self._has_failed, self.reason = True, "the run failed"
            self._until = now + self._limits.stall_s

    def is_overdue(self, now: float) -> bool:
        """Whether the learner has been waited for long enough."""
        return now >= self._until

    @property
    def is_by_limit(self) -> bool:
        """Whether the run's own limit, and nobody, wants it to stop."""
        return self.reason is not None and not self._is_asked and not self._has_failed
