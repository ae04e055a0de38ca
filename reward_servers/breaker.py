"""When a reward that used to work fails on everything: stop asking, and try now and then.

    closed ──`failures` batches in a row fail as a whole──► open ──a trial batch works──► closed

While it is open no record but the trial's is handed to the reward, so an outage wears no records
out. A reward that has never worked does not open it: it is broken, and the run's failure budget
says so.
"""

import time
from collections.abc import Callable


class RewardDownError(RuntimeError):
    """A reward that had worked did not come back in time."""


class Breaker:
    """Belongs to the loop that scores; not thread-safe.

    Args:
        failures: batches in a row in which nothing could be scored.
        first_s: before the first trial; doubles up to `longest_s`.
        patience_s: an outage longer than this raises.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        first_s: float = 1.0,
        longest_s: float = 30.0,
        patience_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = failures
        self._first_s = first_s
        self._longest_s = longest_s
        self._patience_s = patience_s
        self._clock = clock
        self._has_worked = False
        self._failures = 0
        self._failing_since = 0.0
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """Nothing but trials may be scored."""
        return self._has_worked and self._failures >= self._limit

    @property
    def reason(self) -> str:
        """Why it is open; empty while it is closed."""
        return self._reason if self.is_open else ""

    def note(self, failure: str | None) -> None:
        """What became of a batch: None if anything was scored, else the reason.

        Raises:
            RewardDownError: it is open, and nothing was scored for longer than `patience_s`.
        """
        if failure is None:
            self._has_worked = True
            self._failures = 0
            return
        now = self._clock()
        if self._failures == 0:
            self._failing_since = now
        self._failures += 1
        self._reason = failure
        if self.is_open and now - self._failing_since > self._patience_s:
            raise RewardDownError(
                f"no picture could be scored for {now - self._failing_since:.0f} s: {failure}"
            )

    def wait_s(self) -> float:
        """Before the next trial; 0 while it is closed."""
        if not self.is_open:
            return 0.0
        return min(self._first_s * 2 ** (self._failures - self._limit), self._longest_s)
