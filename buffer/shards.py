"""Asking several servers of which some may be away.

    answers ─► fails ─► (not due: the others are asked) ─► due: is asked again ─► answers

No server is waited for before the others have been asked. Knows nothing of what is asked.
"""

import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from buffer.errors import ReplayError, ReplayUnavailable

log = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 3.2
_FORGOTTEN_S = 30.0
"""A failure so long after the last one begins an outage of its own: nobody asked between them."""
_SLICE_S = 0.2
"""Longest wait at one server before the others are looked at again."""


class Shard(Generic[S]):
    """A client of one server, and since when that is away. Both ends of an outage are logged."""

    def __init__(self, client: S) -> None:
        self.client = client
        self._error: ReplayUnavailable | None = None
        self._failures = 0
        self._away_since = 0.0
        self._failed_at = 0.0
        self._due_at = 0.0

    @property
    def is_away(self) -> bool:
        """It did not answer when it was asked last."""
        return self._error is not None

    @property
    def is_due(self) -> bool:
        """It answers as far as is known, or it is time to ask again."""
        return self._error is None or time.monotonic() >= self._due_at

    def wait_until_due(self, deadline: float) -> None:
        """Sleeps until it is, or until then."""
        if self._error is not None:
            time.sleep(max(0.0, min(self._due_at, deadline) - time.monotonic()))

    def ask(self, question: Callable[[S], T]) -> T:
        """What the server answers, whether it is due or not.

        Raises:
            ReplayUnavailable: nothing; it is due again after a while.
        """
        begun = time.monotonic()
        try:
            answer = question(self.client)
        except ReplayUnavailable as error:
            self._fail(error, begun)
            raise
        if self._error is not None:
            away_s = time.monotonic() - self._away_since
            log.warning("%r answers again, after %.1f s", self.client, away_s)
            self._error, self._failures = None, 0
        return answer

    def ask_if_due(self, question: Callable[[S], T]) -> T:
        """As `ask`; the error that is known already where it is not due."""
        if self._error is not None and not self.is_due:
            raise ReplayUnavailable(str(self._error))
        return self.ask(question)

    def lasting_error(self, outage_s: float) -> ReplayUnavailable | None:
        """Why it is away, once it has been so for `outage_s`."""
        error = self._error
        return error if error and time.monotonic() - self._away_since >= outage_s else None

    def _fail(self, error: ReplayUnavailable, begun: float) -> None:
        now = time.monotonic()
        if self._error is None:
            log.warning("a server of the replay is away, the others go on: %s", error)
        if self._error is None or begun - self._failed_at > _FORGOTTEN_S:
            self._away_since, self._failures = begun, 0
        wait_s = min(_FIRST_WAIT_S * 2**self._failures, _LONGEST_WAIT_S)
        self._error, self._failed_at = error, now
        self._failures += 1
        # At least as long as it took to fail: one that hangs costs at most half of the time.
        self._due_at = now + max(wait_s, now - begun)


class Shards(Generic[S]):
    """Ways to ask servers that are numbered from 0.

    Args:
        clients: with little patience of their own.
        outage_s: how long a server that is needed may be away.
    """

    def __init__(self, clients: Sequence[S], *, outage_s: float) -> None:
        self._shards = [Shard(client) for client in clients]
        self._outage_s = outage_s
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[S]:
        return (shard.client for shard in self._shards)

    def ask_once(self, number: int, question: Callable[[S], T]) -> T:
        """One server's answer; ReplayUnavailable if it is away, and not asked until it is due.

        Whoever has others to ask next loses no more time at one that hangs.
        """
        return self._shards[number].ask_if_due(question)

    def tell(self, question: Callable[[S], T]) -> dict[int, T]:
        """Answers of those that answer.

        Raises:
            ReplayUnavailable: one is away for `outage_s`.
            ReplayError: one refused. In any case the others have been told.
        """
        answers: dict[int, T] = {}
        errors: list[ReplayError] = []
        for number in self._due(0):
            try:
                answers[number] = self._shards[number].ask(question)
            except ReplayUnavailable:
                continue
            except ReplayError as error:
                errors.append(error)
        self.bear_outages()
        if errors:
            raise errors[0]
        return answers

    def settle(self, questions: Mapping[int, Callable[[S], T]]) -> dict[int, T]:
        """Every server's answer to its question; those that are away come last.

        Raises:
            ReplayUnavailable: one was away for `outage_s` from now.
            ReplayError, ValueError: one refused. In any case the others have done their part.
        """
        deadline = time.monotonic() + self._outage_s
        answers: dict[int, T] = {}
        errors: list[ReplayError | ValueError] = []
        queue = deque(sorted(questions, key=lambda number: self._shards[number].is_away))
        while queue:
            number = queue.popleft()
            self._shards[number].wait_until_due(deadline)
            try:
                answers[number] = self._shards[number].ask(questions[number])
            except (ReplayError, ValueError) as error:
                if isinstance(error, ReplayUnavailable) and time.monotonic() < deadline:
                    queue.append(number)
                else:
                    errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def settle_all(self, question: Callable[[S], T]) -> list[T]:
        """Every server's answer to one question, as `settle`."""
        answers = self.settle(dict.fromkeys(range(len(self)), question))
        return [answers[number] for number in range(len(self))]

    def first_found(self, ask: Callable[[S], T | None]) -> T | None:
        """The first answer that is something, another server first each time; None: all had none.

        Raises:
            ReplayUnavailable: every server was away for `outage_s`.
        """
        while True:
            answered = False
            for _, answer in self._answers(ask, first=next(self._turns)):
                if answer is not None:
                    return answer
                answered = True
            if answered:
                return None
            self._wait_for_any()

    def gather(
        self, ask: Callable[[S, int, int, float], list[T]], *, most: int, block_s: float
    ) -> list[tuple[int, T]]:
        """Up to `most` items of those servers that have some; waits for the first up to `block_s`.

        Who is asked first, where there is too much, changes from call to call. All but the last are
        only looked at, and that one is waited at for a moment: it cannot tell what others have.

        Args:
            ask: (client, number of its server, most items, seconds to wait for one) -> items.

        Raises:
            ReplayUnavailable: every server was away for `outage_s`.
        """
        deadline = time.monotonic() + block_s
        while True:
            found: list[tuple[int, T]] = []
            answered, due = False, self._due(next(self._turns))
            for number in due:
                if len(found) == most:
                    break
                left_s = max(0.0, deadline - time.monotonic())
                wait_s = min(left_s, _SLICE_S) if number == due[-1] and not found else 0.0
                room = most - len(found)
                with contextlib.suppress(ReplayUnavailable):
                    items = self._shards[number].ask(
                        lambda client, n=number, room=room, wait_s=wait_s: ask(
                            client, n, room, wait_s
                        )
                    )
                    found += [(number, item) for item in items]
                    answered = True
            if found or (answered and time.monotonic() >= deadline):
                return found
            if not answered:
                self._wait_for_any()

    def bear_outages(self) -> None:
        """ReplayUnavailable once a server is away for `outage_s`."""
        if errors := self._lasting_errors():
            raise errors[0]

    def _answers(self, question: Callable[[S], T], *, first: int) -> Iterator[tuple[int, T]]:
        """Of those that answer, one after the other."""
        for number in self._due(first):
            try:
                answer = self._shards[number].ask(question)
            except ReplayUnavailable:
                continue
            yield number, answer

    def _due(self, first: int) -> list[int]:
        """Those worth asking now, from a number on and around."""
        numbers = ((first + place) % len(self) for place in range(len(self)))
        return [number for number in numbers if self._shards[number].is_due]

    def _wait_for_any(self) -> None:
        """A moment; ReplayUnavailable once all are away for `outage_s`."""
        errors = self._lasting_errors()
        if len(errors) == len(self):
            raise errors[0]
        time.sleep(_FIRST_WAIT_S)

    def _lasting_errors(self) -> list[ReplayUnavailable]:
        found = (shard.lasting_error(self._outage_s) for shard in self._shards)
        return [error for error in found if error is not None]
