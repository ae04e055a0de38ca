"""Methods in the alternation that train on the steps of the newest trajectories, once.

What a cycle finds was sampled by the version that it begins with. Which of its rows go into which
update, a method's plan says: all of them for a policy gradient, pairs of them for a preference.
Shape suffixes: B rows of this rank, P pairs, U updates.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from buffer.records import IndexEntry
from learner.groups import ScoredGroups
from learner.journal import Journal
from learner.methods.clip_watch import ClipWatch
from learner.methods.ddpo import advantages
from learner.methods.likelihood import preferred_pairs
from learner.methods.uninformed import NothingToLearnError, no_signal
from learner.methods.updates import UpdatedPolicy
from learner.seat import Seat
from learner.settings.on_policy import OnPolicy, Ppo, Pso
from learner.transitions import Steps, Transitions, read_transitions, shuffled_batches

log = logging.getLogger(__name__)
_DRAWS = 5
"""The stream of random numbers that decides the order of rows."""


class RememberingPolicy(UpdatedPolicy[Transitions], Protocol):
    """A policy that is improved from its own steps.

    Among a step's metrics is `clip_fraction`, the share of rows that the clip leaves no gradient.
    """

    def remembered(self, taken: Transitions, *, rows_at_once: int) -> Transitions:
        """With the noise that the policy tells now: no update may come before."""
        ...


@dataclass(frozen=True)
class Plan:
    """What a cycle trains on.

    Args:
        entries: trajectories.
        advantages: of each of them.
        rows_UB: of this rank, by update; row `i · K + k` is step k of trajectory i.
        replaces: whether a row that is gone may be replaced by another.
    """

    entries: Sequence[IndexEntry]
    advantages: Sequence[float]
    rows_UB: np.ndarray
    replaces: bool


class MakePlan(Protocol):
    """A method's choice, from complete groups of one version; alike on all ranks but its share.

    Raises:
        NothingToLearnError: their rewards tell no picture from another.
    """

    def __call__(
        self, groups: ScoredGroups, tickets: Sequence[int], slots: int, rng: Generator, seat: Seat
    ) -> Plan:
        """Args: `slots` are steps of a trajectory."""
        ...


class OnPolicySteps:
    """Implements `learner.methods.alternation.PolicySteps`."""

    def __init__(
        self,
        settings: OnPolicy,
        policy: RememberingPolicy,
        steps: Steps,
        plan: MakePlan,
        journal: Journal,
        seat: Seat,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._steps = steps
        self._plan = plan
        self._journal = journal
        self._seat = seat
        self._batches: list[Transitions] = []
        self._clipped = ClipWatch()
        self._version = 0

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Nothing: every cycle begins with its own groups."""

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Reads the cycle's steps, and asks the policy about them before it changes.

        Raises:
            NothingToLearnError: no group of this version is there, or none tells anything.
        """
        seat, slots = self._seat, len(self._steps.weights)
        of_version = groups.of_version(tickets, version)
        if len(of_version) < len(tickets):
            log.warning(
                "%d of %d groups were not sampled by version %d and are left out",
                len(tickets) - len(of_version),
                len(tickets),
                version,
            )
        if not of_version:
            raise NothingToLearnError(
                f"policy version {version} has no group with all its rewards: see the quarantined "
                "records for the reasons; or other versions sampled them all"
            )
        rng = np.random.default_rng([seat.seed, _DRAWS, self._policy.steps_taken])
        plan = self._plan(groups, of_version, slots, rng, seat)
        # A row that comes in several updates is read, and the policy asked about it, once.
        mine, place = np.unique(plan.rows_UB, return_inverse=True)
        groups.tell_fetched([plan.entries[i] for i in np.unique(mine // slots)])
        taken = read_transitions(
            groups.source.replay,
            self._steps,
            plan.entries,
            plan.advantages,
            mine.tolist(),
            replaces=plan.replaces,
        )
        at_once = max(1, plan.rows_UB.shape[1] // self._settings.micro_batches)
        with self._journal.counted("old policy", f"{len(mine)}"):
            taken = self._policy.remembered(taken, rows_at_once=at_once)
        place_UB = place.reshape(plan.rows_UB.shape)
        self._batches = [taken.rows(place_B.tolist()) for place_B in place_UB[::-1]]
        self._version = version

    @property
    def kind(self) -> str:
        return ""

    @property
    def steps_taken(self) -> int:
        return self._policy.steps_taken

    def step(self) -> dict[str, float]:
        metrics = self._policy.step(self._batches.pop())
        change = self._clipped.seen(metrics["clip_fraction"], is_last=not self._batches)
        if change is not None and self._seat.is_first:
            _tell_of_clip(self._version, is_all=change)
        return metrics

    def save(self, folder: Path) -> None:
        """Nothing that would not fit JSON."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.from_json(state)
        self._clipped = ClipWatch(is_all=state["all_clipped"])

    def state(self) -> dict[str, Any]:
        return {**self._policy.to_json(), "all_clipped": self._clipped.is_all}


def _tell_of_clip(cycle: int, *, is_all: bool) -> None:
    """That the policy has stopped learning, or has resumed."""
    if is_all:
        log.warning(
            "cycle %d: every row of every update was beyond method.ratio_clip, where it has no "
            "gradient, so the policy no longer learns from its reward: lower method.learning_rate "
            "or widen method.ratio_clip",
            cycle,
        )
    else:
        log.info("cycle %d: rows are within method.ratio_clip again, so the policy learns", cycle)


def every_step(settings: Ppo) -> MakePlan:
    """Every step of every trajectory, by how much better its picture is than others."""

    def plan(
        groups: ScoredGroups, tickets: Sequence[int], slots: int, rng: Generator, seat: Seat
    ) -> Plan:
        """Every slot of every trajectory, in batches without repetition."""
        advantage_GN = advantages(
            groups.rewards(tickets)[:, :, -1],
            baseline=settings.baseline,
            clip=settings.advantage_clip,
        )
        if not advantage_GN.any():
            raise no_signal(
                "no picture is better than those it is compared with, so every advantage is 0"
            )
        entries = groups.entries(tickets)
        rows_UB = shuffled_batches(
            len(entries) * slots, settings.policy_steps, settings.policy_batch, rng
        )
        mine_UB = rows_UB[:, seat.share]
        return Plan(entries, advantage_GN.flatten().tolist(), mine_UB, replaces=True)

    return plan


def steps_of_pairs(settings: Pso) -> MakePlan:
    """Steps of the best trajectory of a group beside the same steps of its worst.

    The first half of an update's rows are the better ones.
    """

    def plan(
        groups: ScoredGroups, tickets: Sequence[int], slots: int, rng: Generator, seat: Seat
    ) -> Plan:
        """Slots of the pairs whose rewards differ."""
        pairs = preferred_pairs(groups.rewards(tickets)[:, :, -1].numpy())
        members = groups.source.group_size
        entries = groups.entries(tickets)
        row_UP = shuffled_batches(
            len(pairs) * slots, settings.policy_steps, settings.policy_batch, rng
        )[:, seat.share]
        pair_UP, slot_UP = row_UP // slots, row_UP % slots
        halves = [
            (pairs.group[pair_UP] * members + member_P[pair_UP]) * slots + slot_UP
            for member_P in (pairs.winner, pairs.loser)
        ]
        # Pairs of different prompts would be no pairs.
        return Plan(entries, [0.0] * len(entries), np.concatenate(halves, axis=1), replaces=False)

    return plan
