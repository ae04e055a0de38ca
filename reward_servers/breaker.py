"""When a reward that used to work is down: stop asking it about records, and look now and then.

    closed ──a batch failed as a whole, and so does a probe──► open ──the probe works──► closed

The probe is a picture that was scored before. It tells a reward that is down from records that
cannot be scored: in an outage none is worn out, and records that always fail hold up nobody.
"""

import time
from collections.abc import Callable


class RewardDownError(RuntimeError):
    """A reward that had worked did not come back in time."""


class Breaker:
    """Belongs to the loop that scores; not thread-safe.

    Args:
        first_s: before the first probe of an outage; doubles up to `longest_s`.
        patience_s: an outage longer than this raises.
    """

    def __init__(
        self,
        *,
        first_s: float = 1.0,
        longest_s: float = 30.0,
        patience_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._patience_s = patience_s
        self._clock = clock
        self._failures = 0
        self._down_since = 0.0
        self._reason = ""

    @property
    def is_open(self) -> bool:
        """Nothing but probes may be scored."""
        return self._failures > 0

    @property
    def reason(self) -> str:
        """Why it is open; empty while it is closed."""
        return self._reason

    def succeed(self) -> None:
        """A probe, or a batch, was scored."""
        self._failures = 0
        self._reason = ""

    def fail(self, reason: str) -> None:
        """A probe failed.

        Raises:
            RewardDownError: the first failure of the row is longer ago than `patience_s`.
        """
        now = self._clock()
        if not self.is_open:
            self._down_since = now
        self._failures += 1
        self._reason = reason
        if now - self._down_since > self._patience_s:
            raise RewardDownError(
                f"nothing could be scored for {now - self._down_since:.0f} s: {reason}"
            )

    def wait_s(self) -> float:
        """Before the next probe; 0 while it is closed."""
        if not self.is_open:
            return 0.0
        return min(self._first_s * 2 ** (self._failures - 1), self._longest_s)
