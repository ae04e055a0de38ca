"""Writing that a run does not depend on: curves, accounts, decisions, what a person reads."""

import logging
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class BestEffort:
    """A block whose OSError is told and goes no further, such as that of a disk that is full.

    Told once, and once more when the block works again: it may be entered many times a minute.

    Args:
        what: is not written then, for the log.
        meanwhile: what becomes of it until it can be, such as "which wait"; for the log.

    Attributes:
        fails: whether it did the last time.
    """

    def __init__(self, what: str, *, meanwhile: str = "") -> None:
        self.fails = False
        self._what = what
        self._lacking = f"{what}, {meanwhile}" if meanwhile else what

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is not None and not isinstance(error, OSError):
            return False
        if error is not None and not self.fails:
            log.warning("the run goes on without %s: %s", self._lacking, error)
        if error is None and self.fails:
            log.warning("%s can be written again", self._what)
        self.fails = error is not None
        return self.fails
