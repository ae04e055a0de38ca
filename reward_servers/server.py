"""A reward server: claims pending records, decodes them, scores them, commits or fails them.

    claim ─► decode ─► every reward ─► commit (all values finite) or fail (with a reason) ─► claim …

A record is claimed under a lease and committed by its id, so every step may be repeated: a
server that dies at any point loses nothing, and a record scored twice counts once. A failure never
becomes a number (`Scorer`). When a reward that used to work is down, records stay in the queue
until it is back (`Breaker`).

A plain class with `run` and `stop`; knows nothing of Ray, Redis, torch or where records go.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from buffer.backoff import Backoff
from buffer.errors import ReplayFull
from buffer.heartbeat import Watch
from buffer.lost_gpu import tells_lost_gpu
from buffer.records import Record, Scores
from buffer.stage_seconds import StageSeconds
from reward_servers.base import Failure, RewardModel
from reward_servers.breaker import Breaker, RewardDownError
from reward_servers.probe import Probe
from reward_servers.scorer import Decode, Scorer, to_score
from reward_servers.timed import StalledError

log = logging.getLogger(__name__)
T = TypeVar("T")
_COUNTS = ("scored", "failed", "retried", "duplicates", "images", "failures")


class PendingRecords(Protocol):
    """The part of the replay buffer that a reward server uses."""

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        """Up to `max_records` as soon as there is one; empty after `block_s` without any."""
        ...

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
        """Store the scores of records by id, each once however often; how many were new."""
        ...

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        """Give a record up for another attempt, or for good (True) when none is left."""
        ...

    def renew_claims(self, owner: str, record_ids: Sequence[str]) -> int:
        """Hold claims for another lease; how many are still the owner's."""
        ...

    def unclaim(self, record_ids: Sequence[str]) -> int:
        """Give claims back without counting an attempt; how many were."""
        ...


@dataclass(frozen=True)
class ServerSettings:
    """How a reward server batches, waits and retries.

    Args:
        max_batch: images that are decoded and scored together.
        batch_wait_s: longest wait of a batch that has a record for more of them.
        timeout_s: of one batch in one reward; what misses it is failed.
        lease_s: of a claim; it is renewed every third of it while the server works. A dead
            server's records go to another after it.
        hold_s: a batch that is decoded and scored for longer loses its claims: the server hangs.
            Four times as long until a first one is scored.
        slow_advice: what to do about a batch that was only slow, for the log.
        commit_s: beside `hold_s`, of a whole batch: a replay that is full or away is waited for.
        outage_s: how long a reward that had worked may be down.
        block_s: longest wait for a first record, and so for `stop`.
        full_s: between attempts to commit to a full replay.
        backoff_s: after the first failure; doubles up to `max_backoff_s`.
        max_failures: in a row; one more and the server gives up.
    """

    max_batch: int = 64
    batch_wait_s: float = 0.05
    timeout_s: float = 60.0
    lease_s: float = 15.0
    hold_s: float = 1800.0
    slow_advice: str = ""
    commit_s: float = 600.0
    outage_s: float = 600.0
    block_s: float = 1.0
    full_s: float = 1.0
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_failures: int = 8

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError(f"max_batch is {self.max_batch}; it must be at least 1")
        if not 0 < self.timeout_s < self.hold_s or not 0 < self.lease_s < self.hold_s:
            raise ValueError(
                f"timeout_s is {self.timeout_s}, lease_s {self.lease_s} and hold_s {self.hold_s}; "
                "timeout and lease must be above 0 and below hold_s, else every batch is given up"
            )


class RewardServer:
    """Runs until `stop`, or until it has failed `max_failures` times in a row.

    Args:
        decode, rewards, called: see `Scorer`.
        owner: names the claims; unique among the reward servers of a run.
        scored_before: finds a probe where this server has scored nothing yet and then cannot.
        on_hang: called from another thread when a batch takes longer than it may.
    """

    def __init__(
        self,
        replay: PendingRecords,
        decode: Decode,
        rewards: Mapping[str, RewardModel],
        *,
        owner: str,
        settings: ServerSettings | None = None,
        scored_before: Callable[[], Probe | None] = lambda: None,
        on_hang: Callable[[], object] = lambda: None,
        called: Callable[[str, float, int], object] = lambda name, seconds, num_failed: None,
    ) -> None:
        self._settings = settings or ServerSettings()
        self._replay = replay
        self._scorer = Scorer(decode, rewards, timeout_s=self._settings.timeout_s, called=called)
        self._owner = owner
        self._scored_before = scored_before
        self._watch = Watch(
            hold_s=self._settings.hold_s,
            every_s=self._settings.lease_s / 3,
            on_hang=on_hang,
            name=owner,
            advice=self._settings.slow_advice,
        )
        self._stopping = threading.Event()
        self._backoff = Backoff(
            owner,
            first_s=self._settings.backoff_s,
            longest_s=self._settings.max_backoff_s,
            max_failures=self._settings.max_failures,
        )
        self._breaker = Breaker(patience_s=self._settings.outage_s)
        self._probe: Probe | None = None
        self._images_per_record = 1
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._seconds = StageSeconds("wait", "decode", "score", "commit")

    def run(self) -> None:
        """Score until `stop`.

        Raises:
            GaveUpError: after too many failures in a row; its cause is the last of them.
            StalledError: calls of a reward hang for good.
            RewardDownError: a reward that had worked was down for `outage_s`, or its GPU is lost to
                this process.
        """
        try:
            while not self._stopping.is_set():
                self._guarded_batch()
        finally:
            self._scorer.close()

    def stop(self) -> None:
        """End `run` soon: the batch in hand is scored and committed."""
        self._stopping.set()

    def stats(self) -> dict[str, float | str]:
        """Counters since the start; may be called from another thread.

        `scored`, `failed`, `retried` and `duplicates` count records: committed, given up for
        good, queued again, committed before by another; `images` counts decoded pictures,
        `failures` batches that broke; `down` is why nothing is scored now, if so;
        `wait_s`, `decode_s`, `score_s` and `commit_s` are seconds by stage.
        """
        seconds = self._seconds.stats()
        return {"owner": self._owner, **self._counts, **seconds, "down": self._breaker.reason}

    def _guarded_batch(self) -> None:
        try:
            self._batch()
            self._backoff.succeed()
        except (StalledError, RewardDownError):
            raise
        except Exception as error:  # noqa: BLE001  the outermost loop
            self._count_failure(error)

    def _count_failure(self, error: Exception) -> None:
        self._counts["failures"] += 1
        log.exception("%s: batch failed, %d before it", self._owner, self._backoff.failures)
        wait_s = self._backoff.fail(error)
        with self._seconds.of("wait"):
            self._stopping.wait(wait_s)

    def _batch(self) -> None:
        self._scorer.check()
        if self._breaker.is_open and not self._is_back():
            return
        with self._seconds.of("wait"):
            claimed = self._claim()
        if not claimed:
            return
        left = [record.record_id for record in claimed]
        with self._watch.holding(
            lambda: self._replay.renew_claims(self._owner, tuple(left)),
            wait_s=self._settings.commit_s,
        ):
            for records in _cut(claimed, self._settings.max_batch):
                self._score(records)
                if self._breaker.is_open:
                    self._replay.unclaim(left)
                    break
                del left[: len(records)]

    def _is_back(self) -> bool:
        """Whether a reward that was down works again; asked after a while.

        Raises:
            RewardDownError: it cannot in this process.
        """
        reason = self._breaker.reason
        # The decoder is here; a reward may pass on what went wrong in another process.
        if reason.startswith("not decoded") and tells_lost_gpu(reason):
            raise RewardDownError(f"a new process is needed: {reason}")
        with self._seconds.of("wait"):
            stopped = self._stopping.wait(self._breaker.wait_s())
        return not stopped and not self._is_down()

    def _claim(self) -> list[Record]:
        """What is there up to a full batch; once there is some, more for `batch_wait_s`."""
        records = self._claim_for(self._settings.max_batch, self._settings.block_s)
        if not records:
            return records
        self._images_per_record = max(1, len(records[0].scored))
        deadline = time.monotonic() + self._settings.batch_wait_s
        while (left_s := deadline - time.monotonic()) > 0 and not self._stopping.is_set():
            room = self._settings.max_batch - sum(len(record.scored) for record in records)
            if room < self._images_per_record:
                break
            records += self._claim_for(room, left_s)
        return records

    def _claim_for(self, images: int, block_s: float) -> list[Record]:
        return self._replay.claim(
            self._owner,
            max_records=max(1, images // self._images_per_record),
            block_s=block_s,
            lease_s=self._settings.lease_s,
        )

    def _score(self, records: list[Record]) -> None:
        outcomes = self._outcomes(records)
        if all(isinstance(outcome, Failure) for outcome in outcomes):
            with self._seconds.of("score"):
                if self._is_down():
                    return
        self._remember(records, outcomes)
        with self._seconds.of("commit"):
            self._settle(records, outcomes)

    def _outcomes(self, records: list[Record]) -> list[Scores | Failure]:
        with self._watch.working():
            with self._seconds.of("decode"):
                pictures = self._scorer.decoded(records)
            decoded = (each for each in pictures if not isinstance(each, Failure))
            self._counts["images"] += sum(map(len, decoded))
            with self._seconds.of("score"):
                return self._scorer.outcomes(records, pictures)

    def _settle(self, records: list[Record], outcomes: list[Scores | Failure]) -> None:
        """Scores first, for they are dear: what goes wrong after them costs them no more."""
        ended = list(zip((record.record_id for record in records), outcomes, strict=True))
        if scored := [(name, each) for name, each in ended if isinstance(each, Scores)]:
            new = self._when_there_is_room(lambda: self._replay.commit(scored, self._owner))
            self._counts["scored"] += new
            self._counts["duplicates"] += len(scored) - new
        for name, each in ended:
            if isinstance(each, Failure):
                log.info("%s: record %s failed: %s", self._owner, name, each.reason)
                fail = partial(self._replay.fail, name, each.reason, retry=True)
                for_good = self._when_there_is_room(fail)
                self._counts["failed" if for_good else "retried"] += 1

    def _when_there_is_room(self, settle: Callable[[], T]) -> T:
        """Again and again while the replay is full, unless stopped."""
        while True:
            try:
                return settle()
            except ReplayFull as error:
                log.warning("%s: waits with what it has scored: %s", self._owner, error)
                if self._stopping.wait(self._settings.full_s):
                    raise

    def _remember(self, records: list[Record], outcomes: list[Scores | Failure]) -> None:
        """Notes that it works, and keeps a latent that was scored, to probe with."""
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, Scores):
                self._watch.has_worked()
                self._probe = to_score(record)[:1].copy(), record.prompt
                return

    def _is_down(self) -> bool:
        """Whether decoder or reward fail on what has worked before; notes that in the breaker."""
        self._probe = self._probe or self._scored_before()
        if self._probe is None:
            return False
        with self._watch.working():
            failures = self._scorer.failures_of(*self._probe)
        if not failures:
            self._breaker.succeed()
            return False
        if not self._breaker.is_open:
            log.warning("%s: a reward is down: %s", self._owner, failures[0])
        self._breaker.fail(failures[0])
        return True


def _cut(records: list[Record], max_images: int) -> Iterator[list[Record]]:
    """Runs of records with latents of one shape, at most `max_images` of them to score.

    A record with more than that is a run by itself.
    """
    run: list[Record] = []
    for record in records:
        images = sum(len(each.scored) for each in (*run, record))
        if run and (images > max_images or _shape(record) != _shape(run[0])):
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def _shape(record: Record) -> tuple[int, ...]:
    return record.latents[0].shape
