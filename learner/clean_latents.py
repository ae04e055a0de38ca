"""Clean latents of scored trajectories, off-policy: the good ones, and pairs of better and worse.

Which are drawn is a function of the tickets that were asked for and of the generator alone, so
every rank draws the same whole batch and reads its share.
Shape suffixes: B rows, G groups, M members, N trajectories that are known, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from buffer.sampling import fresh_first, uniform
from learner.groups import ScoredGroups
from learner.methods.likelihood import kept_rows, preferred_pairs
from learner.methods.uninformed import NothingToLearnError


@dataclass(frozen=True)
class CleanBatch:
    """Ends of trajectories.

    Args:
        latents_BCHW: float32, scaled.
        reward_B: float32, the weighted sum that is trained on.
    """

    latents_BCHW: Tensor
    prompts: Sequence[str]
    reward_B: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, rows: slice) -> "CleanBatch":
        """Some of them."""
        return CleanBatch(self.latents_BCHW[rows], self.prompts[rows], self.reward_B[rows])


@dataclass(frozen=True)
class PairBatch:
    """Better and worse ends of one prompt, row by row."""

    winners: CleanBatch
    losers: CleanBatch

    def rows(self, rows: slice) -> "PairBatch":
        """Some of them."""
        return PairBatch(self.winners.rows(rows), self.losers.rows(rows))


class CleanLatents:
    """Draws ends of trajectories from what the replay holds.

    Args:
        groups: whose index is drawn from; it must have caught up.
        fresh: share of a batch that comes from the newest policy versions.
    """

    def __init__(self, groups: ScoredGroups, *, fresh: float) -> None:
        self._groups = groups
        self._fresh = fresh

    def good(
        self,
        count: int,
        rng: Generator,
        share: slice,
        *,
        threshold: float | None,
        kept_share: float,
    ) -> CleanBatch:
        """This rank's share of a batch of good ones.

        Raises:
            NothingToLearnError: there are none.
            LookupError: what was drawn is gone.
        """
        good = self.good_rows(threshold=threshold, kept_share=kept_share)
        rows_B = self._drawn(good, self._versions()[good], count, rng)[share]
        return self._read([rows_B], self._groups.final_rewards())[0]

    def good_rows(self, *, threshold: float | None, kept_share: float) -> np.ndarray:
        """Known trajectories that are good, as `kept_rows` says, int64.

        Raises:
            NothingToLearnError: no reward reaches the threshold, or none of them is above 0.
        """
        reward_N = self._rewards()
        good = kept_rows(reward_N, self._versions(), threshold=threshold, share=kept_share)
        if not len(good):
            raise NothingToLearnError(
                f"no picture's reward reaches method.threshold = {threshold:g}, the best of "
                f"{len(reward_N)} has {reward_N.max():.4g}: lower it, or leave it out to learn "
                "from the best share"
            )
        if not (reward_N[good] > 0).any():
            raise NothingToLearnError(
                f"no picture that is kept has a reward above 0, the best has "
                f"{reward_N[good].max():.4g}, and gors weights a picture by its reward: set "
                "rewards.<name>.scale: standard"
            )
        return good

    def pairs(self, count: int, rng: Generator, share: slice) -> PairBatch:
        """This rank's share of a batch of pairs.

        Raises:
            NothingToLearnError: there are none.
            LookupError: what was drawn is gone.
        """
        pairs_P2 = self.pair_rows()
        version_P = self._versions()[pairs_P2[:, 0]]
        drawn_B = self._drawn(np.arange(len(pairs_P2)), version_P, count, rng)[share]
        columns = list(pairs_P2[drawn_B].T)
        return PairBatch(*self._read(columns, self._groups.final_rewards()))

    def pair_rows(self) -> np.ndarray:
        """Best and worst of known trajectories, of complete groups where they differ, [P, 2].

        Raises:
            NothingToLearnError: in no group one is better than another.
        """
        reward_N = self._rewards()
        known_N = self._groups.known_rows()
        rows_GM = self._groups.index.groups(known_N) - known_N[0]
        pairs = preferred_pairs(reward_N[rows_GM])
        columns = [rows_GM[pairs.group, member_P] for member_P in (pairs.winner, pairs.loser)]
        return np.stack(columns, axis=1)

    def _rewards(self) -> np.ndarray:
        """Of known trajectories, [N].

        Raises:
            NothingToLearnError: none is known.
        """
        self._groups.check_known()
        return self._groups.final_rewards()

    def _versions(self) -> np.ndarray:
        """Policy versions of known trajectories, [N]."""
        return self._groups.index.policy_version[self._groups.known_rows()]

    def _drawn(
        self, candidates: np.ndarray, version: np.ndarray, count: int, rng: Generator
    ) -> np.ndarray:
        """So many of the candidates, of which there is at least one; too few come again."""
        assert len(candidates)
        newest = fresh_first(version, min(round(self._fresh * count), len(version)), rng)
        wanted = min(count - len(newest), len(candidates))
        drawn = np.concatenate([newest, uniform(len(candidates), wanted, rng)])
        return candidates[np.resize(drawn, count)]

    def _read(self, columns: Sequence[np.ndarray], reward_N: np.ndarray) -> list[CleanBatch]:
        """Batches side by side; a row that is gone in one of them is replaced in all."""
        known_N = self._groups.known_rows()
        entries = [self._groups.index.entries(known_N[rows_B]) for rows_B in columns]
        for column in entries:
            self._groups.tell_fetched(column)
        wanted = [(e.record_id, e.scored[-1]) for column in entries for e in column]
        read = self._groups.source.replay.read_latents(wanted)
        rows = len(columns[0])
        latents = [read[i : i + rows] for i in range(0, len(read), rows)]
        there = [i for i in range(rows) if all(column[i] is not None for column in latents)]
        if not there:
            raise LookupError(
                "none of the drawn latents is in the replay any more: its capacity is too small "
                "for what is drawn from it, or another run evicts it"
            )
        kept = np.resize(there, rows)
        return [
            CleanBatch(
                latents_BCHW=torch.from_numpy(
                    np.stack([x for i in kept if (x := read_B[i]) is not None]).astype(np.float32)
                ),
                prompts=[column[i].prompt for i in kept],
                reward_B=torch.from_numpy(reward_N[rows_B[kept]].astype(np.float32)),
            )
            for rows_B, column, read_B in zip(columns, entries, latents, strict=True)
        ]
