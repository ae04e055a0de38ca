"""Failures in a row: how long to wait after each, and when to give up."""


class GaveUpError(RuntimeError):
    """A worker failed too often in a row; the cause is the last of its errors."""


class Backoff:
    """Counts one worker's failures in a row.

    Args:
        owner: who fails, for the error's text.
        first_s: the wait after the first failure; it doubles up to `longest_s`.
        max_failures: in a row; one more and the worker gives up.
    """

    def __init__(self, owner: str, *, first_s: float, longest_s: float, max_failures: int) -> None:
        self._owner = owner
        self._first_s = first_s
        self._longest_s = longest_s
        self._max_failures = max_failures
        self.failures = 0

    def succeed(self) -> None:
        """Something worked: the next failure is the first again."""
        self.failures = 0

    def fail(self, error: Exception) -> float:
        """Seconds to wait after one more failure.

        Raises:
            GaveUpError: it was one too many.
        """
        self.failures += 1
        if self.failures > self._max_failures:
            raise GaveUpError(
                f"{self._owner} failed {self.failures} times in a row, last with "
                f"{type(error).__name__}: {error}"
            ) from error
        return self.wait_s(self.failures)

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, at least 1."""
        return min(self._first_s * 2 ** (failures - 1), self._longest_s)
