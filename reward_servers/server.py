"""A reward server: claims pending records, decodes them, scores them, commits or fails them.

    claim ─► decode ─► every reward ─► commit (all values finite) or fail (with a reason) ─► claim …

A record is claimed under a lease and committed by its id, so every step may be repeated: a
server that dies at any point loses nothing, and a record scored twice counts once. A record
with one failed value is failed as a whole; a failure never becomes a number. When a reward that
used to work is down, records stay in the queue until it is back (`Breaker`).

A plain class with `run` and `stop`; knows nothing of Ray, Redis, torch or where records go.

Shape suffixes: B images, C H W latent channels, height, width.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from buffer.backoff import Backoff
from buffer.errors import ReplayFull
from buffer.heartbeat import Heartbeat
from buffer.records import Record, Scores, check_rewards
from reward_servers.base import Failure, Outcome, RewardModel, reason_of
from reward_servers.breaker import Breaker, RewardDownError
from reward_servers.timed import StalledError, TimedReward

log = logging.getLogger(__name__)
_COUNTS = ("scored", "failed", "retried", "duplicates", "images", "failures")
_STAGES = ("wait", "decode", "score", "commit")

Decode = Callable[[np.ndarray], np.ndarray]
"""Scaled latents [B, C, H, W], as they were recorded, -> uint8 [B, H, W, 3]."""


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
        hold_s: a batch that takes longer loses its claims: the server hangs.
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
        decode: makes the pictures that rewards see.
        rewards: name -> model; every scored latent of every record gets a value of each.
            At least one; names as `Scores` takes them.
        owner: names the claims; unique among the reward servers of a run.
        on_hang: called from another thread when a batch takes longer than `hold_s`.
        called: told of every call of a reward: its name, its seconds, its pictures without a score.
    """

    def __init__(
        self,
        replay: PendingRecords,
        decode: Decode,
        rewards: Mapping[str, RewardModel],
        *,
        owner: str,
        settings: ServerSettings | None = None,
        on_hang: Callable[[], object] = lambda: None,
        called: Callable[[str, float, int], object] = lambda name, seconds, num_failed: None,
    ) -> None:
        check_rewards(dict.fromkeys(rewards, (0.0,)))
        self._settings = settings or ServerSettings()
        self._replay = replay
        self._decode = decode
        self._rewards = [
            TimedReward(name, model, timeout_s=self._settings.timeout_s)
            for name, model in rewards.items()
        ]
        self._owner = owner
        self._on_hang = on_hang
        self._called = called
        self._stopping = threading.Event()
        self._backoff = Backoff(
            owner,
            first_s=self._settings.backoff_s,
            longest_s=self._settings.max_backoff_s,
            max_failures=self._settings.max_failures,
        )
        self._breaker = Breaker(patience_s=self._settings.outage_s)
        # A latent whose picture every reward has scored, and its prompt.
        self._probe: tuple[np.ndarray, str] | None = None
        self._images_per_record = 1
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._busy_s: dict[str, float] = dict.fromkeys(_STAGES, 0.0)

    def run(self) -> None:
        """Score until `stop`.

        Raises:
            GaveUpError: after too many failures in a row; its cause is the last of them.
            StalledError: calls of a reward hang for good.
            RewardDownError: a reward that had worked was down for `outage_s`.
        """
        try:
            while not self._stopping.is_set():
                self._guarded_batch()
        finally:
            for reward in self._rewards:
                reward.close()

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
        seconds = {f"{stage}_s": round(value, 3) for stage, value in self._busy_s.items()}
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
        with self._timed("wait"):
            self._stopping.wait(wait_s)

    def _batch(self) -> None:
        for reward in self._rewards:
            reward.check()
        if self._breaker.is_open and not self._is_back():
            return
        with self._timed("wait"):
            claimed = self._claim()
        if not claimed:
            return
        left = [record.record_id for record in claimed]
        with Heartbeat(
            lambda: self._replay.renew_claims(self._owner, tuple(left)),
            every_s=self._settings.lease_s / 3,
            longest_s=self._settings.hold_s,
            on_hang=self._on_hang,
            name=self._owner,
        ):
            for records in _cut(claimed, self._settings.max_batch):
                self._score(records)
                if self._breaker.is_open:
                    self._replay.unclaim(left)
                    break
                del left[: len(records)]

    def _is_back(self) -> bool:
        """Whether a reward that was down works again; asked after a while."""
        with self._timed("wait"):
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
        with self._timed("decode"):
            pictures = self._decoded(records)
        with self._timed("score"):
            outcomes = self._outcomes(records, pictures)
            if all(isinstance(outcome, Failure) for outcome in outcomes) and self._is_down():
                return
        self._remember(records, pictures, outcomes)
        with self._timed("commit"):
            self._settle(records, outcomes)

    def _decoded(self, records: list[Record]) -> list[np.ndarray | Failure]:
        """Pictures of every record, or why it has none; one bad record fails no other."""
        latents = [_to_score(record) for record in records]
        try:
            images_BHWC = self._decode_checked(np.concatenate(latents))
        except Exception as error:  # noqa: BLE001  the decoder is handed in
            if len(records) == 1:
                return [Failure(f"not decoded: {reason_of(error)}")]
            log.warning("%s: decoding record by record: %s", self._owner, error)
            return [self._decoded([record])[0] for record in records]
        self._counts["images"] += len(images_BHWC)
        return [*np.split(images_BHWC, np.cumsum([len(each) for each in latents])[:-1])]

    def _decode_checked(self, latents_BCHW: np.ndarray) -> np.ndarray:
        images = self._decode(latents_BCHW)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(latents_BCHW):
            raise ValueError(
                f"decode made {images.dtype} {list(images.shape)} of {len(latents_BCHW)} latents; "
                "it must make uint8 [B, H, W, 3]"
            )
        return images

    def _outcomes(
        self, records: list[Record], pictures: list[np.ndarray | Failure]
    ) -> list[Scores | Failure]:
        """Of every record: its scores, or why it has none."""
        rows = [i for i, each in enumerate(pictures) if not isinstance(each, Failure)]
        values = self._values(
            [each for each in pictures if not isinstance(each, Failure)],
            [records[i].prompt for i in rows],
        )
        scored = {
            i: _scores(records[i], of_record) for i, of_record in zip(rows, values, strict=True)
        }
        return [each if isinstance(each, Failure) else scored[i] for i, each in enumerate(pictures)]

    def _values(
        self, pictures: list[np.ndarray], prompts: list[str]
    ) -> list[dict[str, list[Outcome]]]:
        """Of every record: name -> one outcome a picture. All rewards work at the same time."""
        if not pictures:
            return []
        images_BHWC = np.concatenate(pictures)
        of_images = [p for p, each in zip(prompts, pictures, strict=True) for _ in each]
        pending = [reward.submit(images_BHWC, of_images) for reward in self._rewards]
        columns: dict[str, Iterator[Outcome]] = {}
        for reward, each in zip(self._rewards, pending, strict=True):
            outcomes = reward.collect(each)
            num_failed = sum(isinstance(outcome, Failure) for outcome in outcomes)
            self._called(reward.name, each.took_s, num_failed)
            columns[reward.name] = iter(outcomes)
        return [
            {name: [next(column) for _ in each] for name, column in columns.items()}
            for each in pictures
        ]

    def _settle(self, records: list[Record], outcomes: list[Scores | Failure]) -> None:
        scored = []
        for record, outcome in zip(records, outcomes, strict=True):
            if isinstance(outcome, Failure):
                log.info("%s: record %s failed: %s", self._owner, record.record_id, outcome.reason)
                for_good = self._replay.fail(record.record_id, outcome.reason, retry=True)
                self._counts["failed" if for_good else "retried"] += 1
            else:
                scored.append((record.record_id, outcome))
        if scored:
            new = self._commit(scored)
            self._counts["scored"] += new
            self._counts["duplicates"] += len(scored) - new

    def _commit(self, scored: list[tuple[str, Scores]]) -> int:
        """Waits while the replay has no room, unless stopped: scores are dear."""
        while True:
            try:
                return self._replay.commit(scored, self._owner)
            except ReplayFull as error:
                log.warning("%s: waits with %d scores: %s", self._owner, len(scored), error)
                if self._stopping.wait(self._settings.full_s):
                    raise

    def _remember(
        self,
        records: list[Record],
        pictures: list[np.ndarray | Failure],
        outcomes: list[Scores | Failure],
    ) -> None:
        """Keeps a latent whose picture was scored, to probe with."""
        for record, images_BHWC, outcome in zip(records, pictures, outcomes, strict=True):
            if isinstance(outcome, Scores) and not isinstance(images_BHWC, Failure):
                self._probe = _to_score(record)[:1].copy(), record.prompt
                return

    def _is_down(self) -> bool:
        """Whether decoder or reward fail on what has worked before; notes that in the breaker."""
        if self._probe is None:
            return False
        failures = self._failures_of(*self._probe)
        if not failures:
            self._breaker.succeed()
            return False
        if not self._breaker.is_open:
            log.warning("%s: a reward is down: %s", self._owner, failures[0])
        self._breaker.fail(failures[0])
        return True

    def _failures_of(self, latent_BCHW: np.ndarray, prompt: str) -> list[str]:
        """What goes wrong with one latent."""
        try:
            picture_BHWC = self._decode_checked(latent_BCHW)
        except Exception as error:  # noqa: BLE001  the decoder is handed in
            return [f"not decoded: {reason_of(error)}"]
        (values,) = self._values([picture_BHWC], [prompt])
        return [
            f"{name}: {outcome.reason}"
            for name, (outcome,) in values.items()
            if isinstance(outcome, Failure)
        ]

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._busy_s[stage] += time.monotonic() - begun


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


def _to_score(record: Record) -> np.ndarray:
    """The latents [B, C, H, W] that rewards score."""
    return np.stack([record.latents[position] for position in record.scored])


def _scores(record: Record, values: Mapping[str, list[Outcome]]) -> Scores | Failure:
    for name, outcomes in values.items():
        for position, outcome in zip(record.scored, outcomes, strict=True):
            if isinstance(outcome, Failure):
                return Failure(f"{name} of step {record.steps[position]}: {outcome.reason}")
    floats = {name: tuple(o for o in each if isinstance(o, float)) for name, each in values.items()}
    return Scores(floats)
