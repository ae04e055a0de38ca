"""Whether more records of a run fail than its budget bears."""

from collections import Counter, deque

from buffer.records import Counters
from buffer.replay import Replay
from buffer.replay_settings import MOST_QUARANTINED
from deploy.run.ranks import RunFailedError
from deploy.settings.sections import FailureBudget


class Failures:
    """Judges the newest records, so that a reward that breaks late is noticed as soon as one that
    breaks early, and the start of a run: one that goes on is not judged by what is over.

    Args:
        first: counters when this start of the run began.
    """

    def __init__(self, budget: FailureBudget, replay: Replay, first: Counters) -> None:
        self._budget = budget
        self._replay = replay
        self._seen = deque([first])

    def check(self, now: Counters) -> None:
        """Ends the run, with the reasons counted, when too many fail.

        Raises:
            RunFailedError: they do.
        """
        if now.failed < self._seen[-1].failed:  # some were released from quarantine: judge anew
            self._seen.clear()
        if not self._seen or _ended(now) != _ended(self._seen[-1]):
            self._seen.append(now)
        while len(self._seen) > 1 and _ended(now) - _ended(self._seen[1]) >= self._budget.of_last:
            self._seen.popleft()
        before = self._seen[0]
        failed, ended = now.failed - before.failed, _ended(now) - _ended(before)
        if failed < max(self._budget.minimum, 1) or failed <= self._budget.share * ended:
            return
        reasons = failure_reasons(self._replay, at_most=3).items()
        told = "; ".join(f"{n} × {reason}" for reason, n in reasons)
        raise RunFailedError(
            f"{failed} of the last {ended} records have no reward, more than the failure budget of "
            f"{self._budget.share:.0%}: {told}. Mend the cause and continue with --resume; where "
            "it failed before the first cycle, begin a run of another name."
        )


def failure_reasons(replay: Replay, *, at_most: int) -> dict[str, int]:
    """How often each reason stands among the newest quarantined records; most frequent first."""
    reasons = Counter(record.reason for record in replay.quarantined(MOST_QUARANTINED))
    return dict(reasons.most_common(at_most))


def _ended(counters: Counters) -> int:
    return counters.committed + counters.failed
