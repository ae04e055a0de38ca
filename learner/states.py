"""Starting points of many-step policies: single states of scored trajectories, off-policy.

A trajectory keeps a few of its chain's states; a draw picks trajectories, then one state of each,
and reads nothing else. Which are picked is a function of the index and of the generator alone, so
every rank draws the same whole batch and reads its share.
Shape suffixes: B rows, N trajectories of the index, C H W latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from buffer.index import LogIndex
from buffer.sampling import discounted_slots, fresh_first, prioritised, rank_priority, uniform
from learner.groups import ScoredGroups
from learner.settings import StateDraw


@dataclass(frozen=True)
class StateBatch:
    """States to step from.

    Args:
        latents_BCHW: float32, scaled; the states before the steps.
        step_B: number of the step that each is about to take, int64 [B].
    """

    latents_BCHW: Tensor
    step_B: Tensor
    prompts: Sequence[str]


def draw_trajectories(
    index: LogIndex, reward_N: np.ndarray, count: int, settings: StateDraw, rng: Generator
) -> np.ndarray:
    """Rows of the index, int64 [count]; too few trajectories come again.

    The share `fresh` comes from the newest policy versions, the rest from all by the rule.
    """
    num_fresh = min(round(settings.fresh * count), len(index))
    newest = fresh_first(index.policy_version, num_fresh, rng)
    wanted = count - num_fresh
    if settings.trajectories == "prioritised":
        older = prioritised(rank_priority(reward_N, settings.rank_exponent), wanted, rng)
    else:
        older = uniform(len(index), min(wanted, len(index)), rng)
    return np.resize(np.concatenate([newest, older]), count)


def draw_slots(
    index: LogIndex, rows: np.ndarray, num_steps: int, discount: float, rng: Generator
) -> np.ndarray:
    """One kept state of each trajectory, by its slot: in proportion to γ^k, 1 for uniform.

    The clean state takes no step and is never drawn.
    """
    slots = []
    for entry in index.entries(rows):
        states = np.array([state for state in entry.steps if state < num_steps])
        after = num_steps - 1 - states
        # γ^k of early states alone may be below what floats hold: only ratios matter.
        slots.append(discounted_slots(after - after.min(), discount, 1, rng)[0])
    return np.array(slots)


class StateReplay:
    """Draws states of what the replay holds.

    Args:
        groups: whose index is drawn from; it must have caught up.
        num_steps: of the chain.
    """

    def __init__(self, groups: ScoredGroups, settings: StateDraw, *, num_steps: int) -> None:
        self._groups = groups
        self._settings = settings
        self._num_steps = num_steps

    def draw(self, count: int, discount: float, rng: Generator, share: slice) -> StateBatch:
        """This rank's share of a batch of `count` states.

        Raises:
            LookupError: none of its states is in the replay any more.
        """
        index = self._groups.index
        reward_N = self._groups.final_rewards()
        rows = draw_trajectories(index, reward_N, count, self._settings, rng)
        slots = draw_slots(index, rows, self._num_steps, discount, rng)
        entries = index.entries(rows[share])
        mine = slots[share].tolist()
        wanted = [(entry.record_id, slot) for entry, slot in zip(entries, mine, strict=True)]
        latents = self._groups.source.replay.read_latents(wanted)
        there = [i for i, latent in enumerate(latents) if latent is not None]
        if not there:
            raise LookupError(
                "none of the drawn states is in the replay any more: its capacity is too small "
                "for what is drawn from it, or another run evicts it"
            )
        # Every rank has rows enough, whatever was evicted meanwhile.
        kept = np.resize(there, len(wanted)).tolist()
        stacked = np.stack([latents[i] for i in kept]).astype(np.float32)  # pyright: ignore
        return StateBatch(
            latents_BCHW=torch.from_numpy(stacked),
            step_B=torch.tensor([entries[i].steps[mine[i]] for i in kept]),
            prompts=[entries[i].prompt for i in kept],
        )
