"""PPO in the alternation: what a cycle finds was sampled by the version that it begins with."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learner.groups import ScoredGroups
from learner.methods.ddpo import advantages
from learner.methods.ppo_policy import PpoPolicy, PpoState
from learner.ppo_settings import Ppo
from learner.seat import Seat
from learner.trainer import Journal
from learner.transitions import Steps, Transitions, read_transitions, shuffled_batches

log = logging.getLogger(__name__)
_DRAWS = 5
"""The stream of random numbers that decides the order of rows."""


class PpoSteps:
    """Implements `learner.methods.alternation.PolicySteps`."""

    def __init__(
        self, settings: Ppo, policy: PpoPolicy, steps: Steps, journal: Journal, seat: Seat
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._steps = steps
        self._journal = journal
        self._seat = seat
        self._batches: list[Transitions] = []

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Nothing: every cycle begins with its own groups."""

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Reads the cycle's steps, and asks the policy about them before it changes.

        Raises:
            LookupError: no group of this version is there.
        """
        settings, seat = self._settings, self._seat
        of_version = groups.of_version(tickets, version)
        if len(of_version) < len(tickets):
            log.warning(
                "%d of %d groups were not sampled by version %d and are left out",
                len(tickets) - len(of_version),
                len(tickets),
                version,
            )
        if not of_version:
            raise LookupError(
                f"policy version {version} has no complete group: all of its cycle failed, or were "
                "sampled by another version"
            )
        reward_GN = groups.rewards(of_version)[:, :, -1]
        advantage_GN = advantages(
            reward_GN, baseline=settings.baseline, clip=settings.advantage_clip
        )
        entries = groups.entries(of_version)
        rng = np.random.default_rng([seat.seed, _DRAWS, self._policy.state.step])
        rows_UB = shuffled_batches(
            len(entries) * len(self._steps.weights),
            settings.policy_steps,
            settings.policy_batch,
            rng,
        )[:, seat.share]
        # A row that comes in several updates is read, and the policy asked about it, once.
        mine, place = np.unique(rows_UB, return_inverse=True)
        taken = read_transitions(
            groups.source.replay,
            self._steps,
            entries,
            advantage_GN.flatten().tolist(),
            mine.tolist(),
        )
        at_once = rows_UB.shape[1] // settings.micro_batches
        with self._journal.counted("old policy", f"{len(mine)}"):
            taken = self._policy.remembered(taken, rows_at_once=at_once)
        place_UB = place.reshape(rows_UB.shape)
        self._batches = [taken.rows(place_B.tolist()) for place_B in place_UB[::-1]]

    @property
    def kind(self) -> str:
        return ""

    def step(self) -> dict[str, float]:
        return self._policy.step(self._batches.pop())

    def save(self, folder: Path) -> None:
        """Nothing that would not fit JSON."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy.state = PpoState(**state)

    def state(self) -> dict[str, Any]:
        return self._policy.state.to_json()
