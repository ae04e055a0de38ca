"""A reward that has a fleet of its own: reward servers hand it their pictures.

    PooledReward.score ── rows, cut among the members ──► RewardWorker.score in reward-clip-0, -1, …

A reward that needs a GPU, or much time, then has as many processes as it needs, whatever the
number of servers that decode. Members come and go: rows whose member is lost are scored by
another, and nobody's loss becomes a number. A member that fails all that it is handed, or does not
answer, is asked last for a while, so that one broken process does not stop the others.

Plain classes: how members are found and called is handed in. Shape suffixes: B images, H W pixels.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol

import numpy as np

from buffer.lost_gpu import tells_lost_gpu
from buffer.stage_seconds import StageSeconds
from reward_servers.answers import all_failed
from reward_servers.base import Failure, Outcome, RewardModel, Scored, reason_of
from reward_servers.breaker import RewardDownError
from reward_servers.timed import TimedReward

log = logging.getLogger(__name__)
_LOOK_AGAIN_S = 0.5
_LONGEST_DOUBT_S = 60.0
_MOST_LOSSES = 2  # of one part: pictures that end every process that scores them must not end all
_MOST_PARTS = 16
_CHECK_EVERY_S = 1.0


class UnavailableError(RuntimeError):
    """A member takes no pictures now: it is being built, is ending, or is gone."""


class MemberLostError(RuntimeError):
    """A member ended with pictures in hand."""


class Members(Protocol):
    """The processes that score, by name."""

    def names(self) -> Sequence[str]:
        """Those that are at work now."""
        ...

    def score(
        self, name: str, images_BHWC: np.ndarray, prompts: Sequence[str], timeout_s: float
    ) -> list[Outcome]:
        """One outcome a row.

        Raises:
            UnavailableError: another should be asked, or this one later.
            MemberLostError: it ended meanwhile.
            TimeoutError: it did not answer in time.
        """
        ...


class RewardWorker:
    """Inside a member: scores what it is handed, one batch after the other, until `stop`.

    Args:
        timeout_s: of one batch.
        has_gpu: errors of CUDA are this process's own, and none that a service passes on.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        name: str,
        owner: str,
        timeout_s: float,
        has_gpu: bool = False,
    ) -> None:
        self._reward = TimedReward(name, model, timeout_s=timeout_s)
        self._owner = owner
        self._has_gpu = has_gpu
        self._lost = ""
        self._stopping = threading.Event()
        self._scoring = threading.Lock()
        self._began = time.monotonic()
        self._seconds = StageSeconds("score")
        self._images = 0
        self._failures = 0

    def run(self) -> None:
        """Until `stop`, and the batch in hand is scored.

        Raises:
            StalledError: calls of the reward hang for good.
            RewardDownError: its GPU is lost to this process.
        """
        while not self._stopping.wait(_CHECK_EVERY_S):
            self._reward.check()
            if self._lost:
                raise RewardDownError(f"a new process is needed: {self._lost}")
        with self._scoring:
            self._reward.close()

    def stop(self) -> None:
        """Take no more pictures."""
        self._stopping.set()

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> list[Outcome]:
        """One outcome a row.

        Raises:
            UnavailableError: it was asked to stop, or has lost its GPU.
            MemberLostError: it has lost its GPU in this batch.
        """
        with self._scoring:
            if self._stopping.is_set() or self._lost:
                raise UnavailableError(f"{self._owner} is ending")
            with self._seconds.of("score"):
                outcomes = self._reward.collect(self._reward.submit(images_BHWC, prompts))
            failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
            self._lost = next((f.reason for f in failures if self._tells_lost(f)), "")
        self._images += len(outcomes)
        self._failures += bool(failures)
        if self._lost:
            # Here all that follows would fail as well, and fast: others would hand it ever more.
            raise MemberLostError(f"{self._owner} ends: {self._lost}")
        return outcomes

    def _tells_lost(self, failure: Failure) -> bool:
        return self._has_gpu and tells_lost_gpu(failure.reason)

    def stats(self) -> dict[str, float | str]:
        """Counters since the start: pictures, batches with one that has no score, seconds."""
        seconds = self._seconds.stats()
        waited_s = max(time.monotonic() - self._began - seconds["score_s"], 0.0)
        return {
            "owner": self._owner,
            "images": self._images,
            "failures": self._failures,
            **seconds,
            "wait_s": round(waited_s, 3),
        }


class PooledReward:
    """A `RewardModel` whose model is elsewhere.

    A batch is cut evenly among the members that are there, and each part goes to the one that has
    least in hand of this process, in turn. A part that finds nobody waits for one to come. One of
    which every row fails is asked of another member too: it may be the member that is broken.

    Args:
        timeout_s: of one batch, with all that it waits and is tried again.
    """

    def __init__(self, name: str, members: Members, *, timeout_s: float) -> None:
        self._name = name
        self._members = members
        self._timeout_s = timeout_s
        self._in_hand: Counter[str] = Counter()
        self._shut_until: dict[str, float] = {}
        self._doubted_until: dict[str, float] = {}
        self._strikes: Counter[str] = Counter()  # parts in a row that a member has failed whole
        self._turns = itertools.count(1)
        self._last_turn: Counter[str] = Counter()
        self._choosing = threading.Lock()
        self._threads = ThreadPoolExecutor(_MOST_PARTS, thread_name_prefix=f"reward-{name}")

    def wait(self, timeout_s: float) -> None:
        """Until a member answers, so that no picture is failed for want of one at the start.

        Raises:
            TimeoutError: none has.
        """
        deadline = time.monotonic() + timeout_s
        nothing = np.zeros((0, 1, 1, 3), np.uint8)
        while self._asked(nothing, [], deadline) is None:
            pass  # that has waited

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        """A value or a failure a row; does not raise."""
        deadline = time.monotonic() + self._timeout_s
        try:
            members = len(self._members.names())
        except Exception as error:  # noqa: BLE001  whoever looks them up is handed in
            return all_failed(len(prompts), reason_of(error))
        num_parts = max(1, min(members, len(prompts), _MOST_PARTS))
        ends = [len(prompts) * part // num_parts for part in range(num_parts + 1)]
        parts = [
            self._threads.submit(
                self._part, images_BHWC[first:end], list(prompts[first:end]), deadline
            )
            for first, end in pairwise(ends)
        ]
        outcomes = [outcome for part in parts for outcome in part.result()]
        failures = {i: each.reason for i, each in enumerate(outcomes) if isinstance(each, Failure)}
        values = [0.0 if isinstance(each, Failure) else each for each in outcomes]
        return Scored(np.array(values, np.float32), failures)

    def _part(
        self, images_BHWC: np.ndarray, prompts: Sequence[str], deadline: float
    ) -> list[Outcome]:
        """Outcomes of one part, whatever happens to those who are asked for it."""
        losses, failed = 0, None
        try:
            while True:
                try:
                    outcomes = self._asked(images_BHWC, prompts, deadline)
                except MemberLostError as error:
                    losses += 1
                    log.warning("reward %s: %s", self._name, error)
                    if losses > _MOST_LOSSES:
                        raise
                    continue
                if outcomes is None:
                    continue
                if failed or not _are_failures(outcomes) or len(self._members.names()) == 1:
                    return outcomes
                failed = outcomes
        except Exception as error:  # noqa: BLE001  whatever it was, these rows have no score
            return failed or [Failure(reason_of(error))] * len(prompts)

    def _asked(
        self, images_BHWC: np.ndarray, prompts: Sequence[str], deadline: float
    ) -> list[Outcome] | None:
        """What a member says; None if nobody takes it just now.

        Raises:
            TimeoutError: the deadline has passed.
            MemberLostError: see there.
        """
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(
                f"no server of reward {self._name!r} answered in time; see its fleet "
                f"rewards.{self._name} by deploy.fleet"
            )
        if (member := self._chosen()) is None:
            time.sleep(min(_LOOK_AGAIN_S, left_s))
            return None
        try:
            outcomes = self._members.score(member, images_BHWC, prompts, left_s)
        except (UnavailableError, MemberLostError) as error:
            self._shut_until[member] = time.monotonic() + _LOOK_AGAIN_S
            if isinstance(error, MemberLostError):
                raise
            return None
        except TimeoutError:
            self._doubt(member, at_least_s=self._timeout_s)
            raise
        finally:
            with self._choosing:
                self._in_hand[member] -= 1
        if len(outcomes) != len(prompts):
            raise ValueError(f"{member} gave {len(outcomes)} outcomes of {len(prompts)} pictures")
        if _are_failures(outcomes):
            self._doubt(member)
        elif outcomes:
            self._strikes[member] = 0
        return outcomes

    def _doubt(self, member: str, at_least_s: float = 0.0) -> None:
        """Asks a member last for a while, longer each time in a row."""
        with self._choosing:
            pause_s = min(_LOOK_AGAIN_S * 2 ** min(self._strikes[member], 9), _LONGEST_DOUBT_S)
            self._strikes[member] += 1
            self._doubted_until[member] = time.monotonic() + max(pause_s, at_least_s)

    def _chosen(self) -> str | None:
        """The member with least in hand, the longest idle of equal ones, those in doubt last; it
        has one part more now."""
        now = time.monotonic()
        with self._choosing:
            there = [n for n in self._members.names() if self._shut_until.get(n, 0.0) <= now]
            if not there:
                return None
            member = min(
                there,
                key=lambda name: (
                    self._doubted_until.get(name, 0.0) > now,
                    self._in_hand[name],
                    self._last_turn[name],
                ),
            )
            self._in_hand[member] += 1
            self._last_turn[member] = next(self._turns)
            return member


def _are_failures(outcomes: Sequence[Outcome]) -> bool:
    return bool(outcomes) and all(isinstance(outcome, Failure) for outcome in outcomes)
