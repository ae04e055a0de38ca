"""Starting points of many-step policies: single states of scored trajectories, off-policy.

A trajectory keeps a few of its chain's states; a draw picks trajectories, then one state of each,
and reads nothing else. Which are picked is a function of the tickets that were asked for and of the
generator alone, so every rank draws the same whole batch and reads its share.
Shape suffixes: B rows, N trajectories that are known, C H W latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from buffer.index import IndexEntry
from buffer.sampling import fresh_first, prioritised, rank_priority, uniform
from learner.diffusion.strata import Strata
from learner.groups import ScoredGroups
from learner.settings.cycles import Cycles
from learner.settings.draft import Draft
from learner.settings.model import Model
from learner.settings.on_policy import OnPolicy
from learner.settings.sqdf import Sqdf, StateDraw
from learner.transitions import trained_strata


@dataclass(frozen=True)
class StateBatch:
    """States to step from.

    Args:
        latents_BCHW: float32, scaled; the states before the steps.
        step_B: number of the step that each is about to take, int64 [B].
        ref_eps_BCHW: the reference's guided noise at them, float32, where samplers keep it.
    """

    latents_BCHW: Tensor
    step_B: Tensor
    prompts: Sequence[str]
    ref_eps_BCHW: Tensor | None = None

    def rows(self, rows: slice) -> "StateBatch":
        """Some of them."""
        ref_eps = None if self.ref_eps_BCHW is None else self.ref_eps_BCHW[rows]
        return StateBatch(self.latents_BCHW[rows], self.step_B[rows], self.prompts[rows], ref_eps)


def draw_trajectories(
    version_N: np.ndarray, reward_N: np.ndarray, count: int, settings: StateDraw, rng: Generator
) -> np.ndarray:
    """Places among the trajectories, int64 [count]; too few come again.

    The share `fresh` comes from the newest policy versions, the rest from all by the rule.

    Raises:
        LookupError: there are none.
    """
    if not len(version_N):
        raise LookupError("no trajectory is in the replay any more that a state could be drawn of")
    num_fresh = min(round(settings.fresh * count), len(version_N))
    newest = fresh_first(version_N, num_fresh, rng)
    wanted = count - num_fresh
    if settings.trajectories == "prioritised":
        older = prioritised(rank_priority(reward_N, settings.rank_exponent), wanted, rng)
    else:
        older = uniform(len(version_N), min(wanted, len(version_N)), rng)
    return np.resize(np.concatenate([newest, older]), count)


def strata_of(settings: Sqdf, num_steps: int) -> Strata:
    """Which states samplers keep and the learner draws; both must ask for the same."""
    states = settings.states
    weight = settings.discount if states.times == "discounted" else 1.0
    cut = Strata.spread if states.keep == "spread" else Strata.last
    return cut(num_steps, states.kept, weight)


def starting_parts(settings: Draft, num_steps: int) -> Strata:
    """The states that a gradient starts from, of which a trajectory has one; before them those
    whose step's KL is told beside, likewise."""
    starts, beside = settings.starts(num_steps), settings.steps_beside(num_steps)
    return Strata(num_steps, (*([beside.start] if beside else []), starts.start, starts.stop))


def kept_parts(settings: Draft, num_steps: int) -> Strata | None:
    """Those that a sampler has to keep for it, as the clean latent is kept in any case."""
    parts = starting_parts(settings, num_steps)
    edges = tuple(edge for edge in parts.edges if edge <= num_steps)
    return Strata(num_steps, edges) if len(edges) > 1 else None


def kept_strata(settings: Cycles, model: Model) -> Strata | None:
    """Parts of a chain of many steps; of each, a trajectory keeps one state for the learner.

    None: it keeps none. The clean latent is kept in any case, and a model of few steps keeps all
    of its own.
    """
    if model.is_few_step:
        return None
    if isinstance(settings, Sqdf):
        return strata_of(settings, model.num_steps)
    if isinstance(settings, OnPolicy):
        return trained_strata(settings, model.num_steps)
    return kept_parts(settings, model.num_steps) if isinstance(settings, Draft) else None


class StateReplay:
    """Draws states of what the replay holds.

    Args:
        groups: whose index is drawn from; it must have caught up.
        strata: by which its trajectories' states were kept.
    """

    def __init__(self, groups: ScoredGroups, settings: StateDraw, strata: Strata) -> None:
        self._groups = groups
        self._settings = settings
        self._strata = strata

    def check(self) -> None:
        """To be called before the first draw of a cycle.

        Raises:
            NothingToLearnError: there is nothing to draw from.
        """
        self._groups.check_known()

    def draw(self, count: int, rng: Generator, share: slice) -> StateBatch:
        """This rank's share of a batch of `count` states.

        Raises:
            LookupError: none of its states is in the replay any more.
        """
        entries = self._trajectories(count, rng, share)
        return self._read(entries, self._strata.draw(count, rng)[share].tolist())

    def draw_each(self, count: int, rng: Generator, share: slice) -> list[StateBatch]:
        """Likewise of `count` trajectories, a batch of every part of the chain; the last part's
        is the last.

        Raises:
            LookupError: none of its states is in the replay any more.
        """
        entries = self._trajectories(count, rng, share)
        parts = range(len(self._strata.edges) - 1)
        return [self._read(entries, [part] * len(entries)) for part in parts]

    def _trajectories(self, count: int, rng: Generator, share: slice) -> Sequence[IndexEntry]:
        """This rank's share of `count` that are drawn."""
        index, known_N = self._groups.index, self._groups.known_rows()
        version_N, reward_N = index.policy_version[known_N], self._groups.final_rewards()
        drawn = draw_trajectories(version_N, reward_N, count, self._settings, rng)
        entries = index.entries(known_N[drawn[share]])
        self._groups.tell_fetched(entries)
        return entries

    def _read(self, entries: Sequence[IndexEntry], mine: Sequence[int]) -> StateBatch:
        """One kept state of every trajectory, by its place among them."""
        wanted = [(entry.record_id, slot) for entry, slot in zip(entries, mine, strict=True)]
        if self._settings.store_reference:
            # As many places from the end as the state is from the end of the states.
            back = [slot - self._settings.kept for slot in mine]
            wanted += [(e.record_id, len(e.steps) + b) for e, b in zip(entries, back, strict=True)]
        read = self._groups.source.replay.read_latents(wanted)
        latents, noises = read[: len(mine)], read[len(mine) :]
        pairs = zip(latents, noises or latents, strict=True)
        there = [i for i, (x, eps) in enumerate(pairs) if x is not None and eps is not None]
        if not there:
            raise LookupError(
                "none of the drawn states is in the replay any more: its capacity is too small "
                "for what is drawn from it, or another run evicts it"
            )
        # Every rank has rows enough, whatever was evicted meanwhile.
        kept = np.resize(there, len(mine)).tolist()
        return StateBatch(
            latents_BCHW=_float32([latents[i] for i in kept]),
            step_B=torch.tensor([entries[i].steps[mine[i]] for i in kept]),
            prompts=[entries[i].prompt for i in kept],
            ref_eps_BCHW=_float32([noises[i] for i in kept]) if noises else None,
        )


def _float32(latents: Sequence[np.ndarray | None]) -> Tensor:
    return torch.from_numpy(np.stack([x for x in latents if x is not None]).astype(np.float32))
