"""From records to their scores: decode the pictures, ask every reward at the same time.

    Record [its scored latents] ─► decode ─► uint8 pictures ─► every reward ─► Scores or Failure

A record with one failed value is failed as a whole. Knows nothing of claims and commits.

Shape suffixes: B images, C H W latent channels, height, width.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from buffer.records import Record, Scores, check_rewards
from reward_servers.base import Failure, Outcome, RewardModel, reason_of
from reward_servers.timed import TimedReward

log = logging.getLogger(__name__)

Decode = Callable[[np.ndarray], np.ndarray]
"""Scaled latents [B, C, H, W], as they were recorded, -> uint8 [B, H, W, 3]."""


class Scorer:
    """Belongs to one thread.

    Args:
        decode: makes the pictures that rewards see.
        rewards: name -> model; every scored latent of every record gets a value of each.
            At least one; names as `Scores` takes them.
        timeout_s: of one batch in one reward; what misses it is failed.
        called: told of every call of a reward: its name, its seconds, its pictures without a score.
    """

    def __init__(
        self,
        decode: Decode,
        rewards: Mapping[str, RewardModel],
        *,
        timeout_s: float,
        called: Callable[[str, float, int], object],
    ) -> None:
        check_rewards(dict.fromkeys(rewards, (0.0,)))
        self._decode = decode
        self._rewards = [
            TimedReward(name, model, timeout_s=timeout_s) for name, model in rewards.items()
        ]
        self._called = called

    def check(self) -> None:
        """StalledError if calls of a reward hang for good."""
        for reward in self._rewards:
            reward.check()

    def close(self) -> None:
        for reward in self._rewards:
            reward.close()

    def decoded(self, records: Sequence[Record]) -> list[np.ndarray | Failure]:
        """Pictures of every record, or why it has none; one bad record fails no other."""
        latents = [to_score(record) for record in records]
        try:
            images_BHWC = self._decode_checked(np.concatenate(latents))
            return [*np.split(images_BHWC, np.cumsum([len(each) for each in latents])[:-1])]
        except Exception as error:  # noqa: BLE001  the decoder is handed in
            reason = reason_of(error)
        # Behind the handler, where the error is gone, and with it what its frames held: a GPU that
        # had no room for all of them has it for one.
        if len(records) == 1:
            return [Failure(f"not decoded: {reason}")]
        log.warning("decoding record by record: %s", reason)
        return [self.decoded([record])[0] for record in records]

    def outcomes(
        self, records: Sequence[Record], pictures: Sequence[np.ndarray | Failure]
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

    def failures_of(self, latent_BCHW: np.ndarray, prompt: str) -> list[str]:
        """What goes wrong with one latent [1, C, H, W]; empty if it can be scored."""
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

    def _decode_checked(self, latents_BCHW: np.ndarray) -> np.ndarray:
        images = self._decode(latents_BCHW)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(latents_BCHW):
            raise ValueError(
                f"decode made {images.dtype} {list(images.shape)} of {len(latents_BCHW)} latents; "
                "it must make uint8 [B, H, W, 3]"
            )
        return images

    def _values(
        self, pictures: Sequence[np.ndarray], prompts: Sequence[str]
    ) -> list[dict[str, list[Outcome]]]:
        """Of every record: name -> one outcome a picture. All rewards work at the same time."""
        if not pictures:
            return []
        images_BHWC = np.concatenate(pictures)
        images_BHWC.flags.writeable = False  # one reward would change what another sees
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


def to_score(record: Record) -> np.ndarray:
    """The latents [B, C, H, W] of a record that rewards score."""
    return np.stack([record.latents[position] for position in record.scored])


def _scores(record: Record, values: Mapping[str, list[Outcome]]) -> Scores | Failure:
    for name, outcomes in values.items():
        for position, outcome in zip(record.scored, outcomes, strict=True):
            if isinstance(outcome, Failure):
                return Failure(f"{name} of step {record.steps[position]}: {outcome.reason}")
    floats = {name: tuple(o for o in each if isinstance(o, float)) for name, each in values.items()}
    return Scores(floats)
