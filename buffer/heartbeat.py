"""Keeping what a worker holds while it works on it: leases that are renewed beside the work.

    with Heartbeat(renew, every_s=lease_s / 3, longest_s=600):
        ...  # work that may take longer than a lease

Leases can then be short, so that the work of a dead worker soon goes to another. The beat ends
after `longest_s`: a worker that hangs must lose its leases too.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)
_FIRST_TAKES = 4
"""Times as long as others a process's first work may take: networks may be compiled in it, caches
filled, and a new process would only have to do that again."""


class Heartbeat:
    """Calls `renew` every `every_s` while the block runs, for `longest_s` at most.

    Args:
        renew: called on another thread. An error is logged, and the next beat tries again.
        on_hang: called once when `longest_s` are over, such as to end the process.
        name: who works, for the log.
        advice: what to do if it did not hang and was only slow, for the log.
    """

    def __init__(
        self,
        renew: Callable[[], object],
        *,
        every_s: float,
        longest_s: float,
        on_hang: Callable[[], object] = lambda: None,
        name: str = "",
        advice: str = "",
    ) -> None:
        if not 0 < every_s < longest_s:
            raise ValueError(
                f"every_s is {every_s} and longest_s {longest_s}: a heart must beat, and stop later"
            )
        self._renew = renew
        self._every_s = every_s
        self._longest_s = longest_s
        self._on_hang = on_hang
        self._name = name
        self._advice = advice
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        deadline = time.monotonic() + self._longest_s
        while not self._done.wait(self._every_s):
            if time.monotonic() > deadline:
                log.error(
                    "%s: at work for more than %g s; its leases are left to run out%s",
                    self._name,
                    self._longest_s,
                    self._advice and f": {self._advice}",
                )
                self._on_hang()
                return
            try:
                self._renew()
            except Exception:
                log.warning("%s: leases not renewed", self._name, exc_info=True)


class Watch:
    """Watches over a worker: renews what it holds until it hangs, and tells what of it may hang.

        with watch.holding(renew, wait_s=600):  # all that is done with what it holds
            with watch.working():  # a network, say, which has no deadline of its own
                ...

    What has a deadline of its own, such as a wait for Redis, counts only against the whole.

    Args:
        hold_s: who works for longer hangs, or four times that until `has_worked` is called.
        every_s: between two beats.
        on_hang: called from another thread, such as to end the process.
        name, advice: see `Heartbeat`.
    """

    def __init__(
        self,
        *,
        hold_s: float,
        every_s: float,
        on_hang: Callable[[], object],
        name: str,
        advice: str = "",
    ) -> None:
        self._hold_s = hold_s
        self._is_first = True
        self._advice = advice
        self._every_s = every_s
        self._on_hang = on_hang
        self._name = name
        self._hangs = False

    def has_worked(self) -> None:
        """A first batch is done, and no other needs as long."""
        self._is_first = False

    def holding(self, renew: Callable[[], object], *, wait_s: float) -> Heartbeat:
        """Calls `renew` until the block ends, hangs, or takes longer than work and `wait_s`."""
        self._hangs = False
        return self._beat(lambda: self._hangs or renew(), wait_s + self._work_s)

    def working(self) -> Heartbeat:
        """Notes a hang once the block takes longer than work may."""
        return self._beat(lambda: None, self._work_s)

    @property
    def _work_s(self) -> float:
        return self._hold_s * (_FIRST_TAKES if self._is_first else 1)

    def _beat(self, renew: Callable[[], object], longest_s: float) -> Heartbeat:
        return Heartbeat(
            renew,
            every_s=self._every_s,
            longest_s=longest_s,
            on_hang=self._hang,
            name=self._name,
            advice=self._advice,
        )

    def _hang(self) -> None:
        self._hangs = True
        self._on_hang()
