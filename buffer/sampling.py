"""Which records, pairs and steps the learner trains on: pure rules over arrays.

Shape suffixes: N records, G groups, M members of a group, S scored positions, K kept latents,
P pairs. Randomness comes from the `Generator` that is passed in. A reward that does not exist
(its record failed or was evicted) is NaN and is never chosen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs (winner, loser) of members of one group at one scored position; each field is [P].

    In the order of group, position, winner, loser. `gap` is how much better the winner is, > 0.
    """

    group: np.ndarray
    position: np.ndarray
    winner: np.ndarray
    loser: np.ndarray
    gap: np.ndarray

    def __len__(self) -> int:
        return len(self.group)


def uniform(num_records: int, count: int, rng: Generator) -> np.ndarray:
    """`count` different rows of `num_records`, all equally likely."""
    _check_enough(num_records, count)
    return rng.choice(num_records, size=count, replace=False)


def fresh_first(policy_version_N: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """The `count` rows with the newest policy versions; equal versions in random order."""
    _check_enough(len(policy_version_N), count)
    shuffle_N = rng.random(len(policy_version_N))
    return np.lexsort((shuffle_N, -np.asarray(policy_version_N, np.int64)))[:count]


def prioritised(priority_N: np.ndarray, count: int, rng: Generator) -> np.ndarray:
    """`count` rows drawn with replacement, each with probability priority / sum of priorities."""
    priority_N = np.asarray(priority_N, np.float64)
    _check_enough(len(priority_N), min(count, 1))
    if not np.isfinite(priority_N).all() or (priority_N < 0).any() or not priority_N.sum() > 0:
        raise ValueError("priorities must be finite, not negative, and not all zero")
    return rng.choice(len(priority_N), size=count, p=priority_N / priority_N.sum())


def rank_priority(value_N: np.ndarray, exponent: float) -> np.ndarray:
    """1 / rank^exponent, rank 1 the highest value: proper for rewards of any sign and scale.

    Equal values share their mean rank, so that the order of rows does not matter.
    """
    value_N = np.asarray(value_N, np.float64)
    _, inverse_N, count_U = np.unique(-value_N, return_inverse=True, return_counts=True)
    last_rank_U = np.cumsum(count_U)
    return (last_rank_U - (count_U - 1) / 2)[inverse_N] ** -exponent


def best_worst_pairs(reward_GMS: np.ndarray) -> Pairs:
    """The best against the worst member of every group, each scored position by itself.

    A group without a gap (all equal, or one member left) gives no pair.
    """
    reward_GMS = _three_axes(reward_GMS)
    present_GMS = ~np.isnan(reward_GMS)
    best_GS = np.where(present_GMS, reward_GMS, -np.inf).argmax(axis=1)
    worst_GS = np.where(present_GMS, reward_GMS, np.inf).argmin(axis=1)
    gap_GS = _at(reward_GMS, best_GS) - _at(reward_GMS, worst_GS)
    group_P, position_P = np.nonzero(gap_GS > 0)
    chosen = (group_P, position_P)
    return Pairs(group_P, position_P, best_GS[chosen], worst_GS[chosen], gap_GS[chosen])


def ordered_pairs(reward_GMS: np.ndarray) -> Pairs:
    """All pairs of a group whose rewards differ, the better one first."""
    reward_GMS = _three_axes(reward_GMS)
    gap_GSMM = np.moveaxis(reward_GMS[:, :, None, :] - reward_GMS[:, None, :, :], 3, 1)
    group_P, position_P, winner_P, loser_P = np.nonzero(gap_GSMM > 0)
    gap_P = gap_GSMM[group_P, position_P, winner_P, loser_P]
    return Pairs(group_P, position_P, winner_P, loser_P, gap_P)


def _at(reward_GMS: np.ndarray, member_GS: np.ndarray) -> np.ndarray:
    return np.take_along_axis(reward_GMS, member_GS[:, None, :], axis=1)[:, 0, :]


def _three_axes(reward_GMS: np.ndarray) -> np.ndarray:
    if reward_GMS.ndim != 3:
        raise ValueError(f"rewards must be [groups, members, positions]; got {reward_GMS.shape}")
    return np.asarray(reward_GMS, np.float64)


def _check_enough(available: int, count: int) -> None:
    if not 0 <= count <= available:
        raise ValueError(f"{count} of {available} records asked for: wait until there are more")
