"""Samples, policy steps and a surrogate of the reward that take turns, on one rank.

    prepare   tickets [0, P) by version 0 ─► fit the surrogate until held-out accuracy
    improve   n_g policy steps                                       cycle c
    adapt     tickets of cycle c by version c + 1 ─► n_s surrogate steps

LaSRO's scheme. What a policy step is, a method says (`PolicySteps`); one whose reward can be
differentiated needs no surrogate (`SurrogateSteps`), and its cycles go without.
Shape suffixes: G groups, N samples of a group, K rewarded steps.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from learner.collectives import any_rank
from learner.engine import Engine
from learner.groups import ScoredGroups
from learner.journal import Journal
from learner.methods.surrogate_steps import SurrogateSteps
from learner.methods.uninformed import NothingToLearnError, most_in_a_row
from learner.policy.average import WeightAverage
from learner.policy.board import Weights
from learner.policy.trainable import trainable_arrays, trained_parameters
from learner.seat import Seat
from learner.settings.cycles import Cycles

log = logging.getLogger(__name__)
_AVERAGE_FILE = "average.safetensors"


class PolicySteps(Protocol):
    """What a method adds to the alternation; all ranks call everything in the same order."""

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Takes what it needs from the groups of the untouched policy."""
        ...

    def begin(self, groups: ScoredGroups, tickets: Sequence[int], version: int) -> None:
        """Before the first step of a cycle: takes what it needs of the newest groups.

        Args:
            tickets: of the newest round, those whose group is complete.
            version: of the policy that was told to sample them, which it still is.

        Raises:
            NothingToLearnError: they tell nothing, so that the cycle has no step. Nothing has
                changed by then.
        """
        ...

    @property
    def kind(self) -> str:
        """Of the next step, if not all cost the same."""
        ...

    @property
    def steps_taken(self) -> int:
        """Updates so far, those before a checkpoint among them."""
        ...

    def step(self) -> dict[str, float]:
        """One policy update; returns its metrics."""
        ...

    def save(self, folder: Path) -> None:
        """What is too large for JSON; called on rank 0 alone."""
        ...

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Restores `save` and `state`."""
        ...

    def state(self) -> dict[str, Any]:
        """What fits JSON."""
        ...


class Alternating:
    """Implements `learner.trainer.Method`.

    A cycle leaves its policy steps out where the surrogate is no guide, and where its samples tell
    nothing; it is recorded as `braked`, and the weights that it publishes are those it began with.

    Args:
        labels: of the rewarded latents of a trajectory, such as '2step', for the curves.
        surrogate: None: the policy steps climb the reward itself.
    """

    def __init__(
        self,
        settings: Cycles,
        steps: PolicySteps,
        *,
        groups: ScoredGroups,
        labels: Sequence[str],
        policy_engine: Engine,
        surrogate: SurrogateSteps | None,
        journal: Journal,
        seat: Seat,
    ) -> None:
        self.cycles = settings.cycles
        self.journal = journal
        self.prepared = False
        self._settings = settings
        self._groups = groups
        self._steps = steps
        self._labels = list(labels)
        self._policy_engine = policy_engine
        self._surrogate = surrogate
        self._seat = seat
        # Whether some group of the untouched policy had all its rewards.
        self._begun = False
        # Cycles in a row, up to now, that told nothing.
        self._uninformed = 0
        self._next_ticket = 0
        self._average: WeightAverage | None = None

    def prepare(self, breathe: Callable[[], None]) -> None:
        """Collects groups of the untouched policy; fits the surrogate to their rewards."""
        count = self._settings.round_sizes[0]
        self.journal.enter("collecting")
        self._collect(range(count), version=0)
        is_new = not self._begun
        everything = self._complete(range(count))
        if self._surrogate is not None and len(everything) < 2:  # one to hold out
            raise ValueError(
                f"only {len(everything)} of {count} groups have all their rewards; see the "
                "quarantined records for the reasons"
            )
        if is_new and everything:
            rewards_GNK = self._groups.rewards(everything)
            self._record_rewards("pretrain", 0, rewards_GNK)
            if self._surrogate is not None:
                self._surrogate.standardise(rewards_GNK)
        if self._surrogate is not None:
            self.journal.enter("fitting the surrogate")
            self._surrogate.fit(everything, breathe)
        self.prepared = True

    def improve(self, cycle: int) -> None:
        """n_g policy steps, unless the surrogate was no guide on the newest samples, or they tell
        nothing.

        Raises:
            ValueError: too many cycles in a row told nothing, and none before them told anything.
        """
        self._groups.policy_version, self._groups.moment = cycle, 2 * cycle
        wanted = self._settings.tickets_before(cycle)
        if self._next_ticket < wanted.stop:  # a budget had ended the run, and was raised
            self.journal.enter("collecting")
            self._collect(wanted, version=cycle)
        self.journal.enter("training")
        if self._surrogate is not None and not self._surrogate.guides:
            self.journal.record("policy", cycle, {"braked": 1.0})
            return
        with self.journal.timed("policy"):
            if lack := self._lack(wanted, cycle):
                self._leave_out(cycle, lack)
                return
            self._uninformed = 0
            for _ in range(self._settings.policy_steps):
                with self.journal.counted("policy", self._steps.kind):
                    metrics = self._steps.step()
                self._groups.top_up()
                self._follow()
        self.journal.record("policy", cycle, {"braked": 0.0, **metrics})

    def adapt(self, cycle: int, *, last: bool) -> None:
        """Fresh groups of the new policy; on them, how good the surrogate is, and its steps."""
        self._groups.policy_version, self._groups.moment = cycle + 1, 2 * cycle + 1
        fresh_range = self._settings.tickets_after(cycle)
        if not fresh_range or self._has_come_to_rest:
            return
        if not self._groups.affords(fresh_range):
            log.info("the budget of reward queries is spent: cycle %d is the last", cycle)
            self.cycles = cycle + 1
            return
        self._collect(fresh_range, version=cycle + 1)
        fresh = self._complete(fresh_range)
        if fresh:
            self._record_rewards("fresh", cycle, self._groups.rewards(fresh))
        if self._surrogate is None:
            return
        if fresh:
            self._surrogate.judge(cycle, fresh)
        known = self._groups.complete(range(self._groups.oldest_kept, fresh_range.start))
        if not last and (fresh or known):
            self._surrogate.adapt(cycle, known, fresh)

    def weights(self) -> Weights:
        return trainable_arrays(self._policy_engine.module.unet)  # pyright: ignore

    def final_weights(self) -> Weights:
        """The running average if there is one."""
        if self._average is None:
            return self.weights()
        return self._average.arrays()

    def save(self, folder: Path) -> None:
        """Weights and optimizers; of the average and the method's own, rank 0 alone."""
        self._policy_engine.save(folder / "policy", {})
        if self._surrogate is not None:
            self._surrogate.save(folder, first=self._seat.is_first)
        if self._seat.is_first:
            self._steps.save(folder)
            if self._average is not None:
                self._average.save(folder / _AVERAGE_FILE)

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Takes over what `save` and `state` have told.

        Raises:
            ValueError: its rounds were of other sizes than those of the settings, or `groups`
                cannot go on from there.
        """
        if odd := self._settings.odd_round(state["round_ends"]):
            raise ValueError(odd)
        self._policy_engine.load(folder / "policy")
        self._steps.load(folder, state["policy"])
        if self._surrogate is not None:
            self._surrogate.load(folder, state["surrogate"])
        self.journal.seconds, self.journal.flops = state["seconds"], state["flops"]
        self._begun, self.prepared = state["begun"], state["prepared"]
        # Settings may have changed since: a run that had come to rest has one cycle to show it.
        self._uninformed = min(state["uninformed"], most_in_a_row(self._settings.cycles) - 1)
        if self._averages and (folder / _AVERAGE_FILE).exists():
            self._average = self._new_average()
            self._average.load(folder / _AVERAGE_FILE)
        self._groups.moments = {name: tuple(it) for name, it in state["reward_moments"].items()}
        # A fit goes on with the groups that it began with: where the replay has lost them they are
        # sampled again, and as the policy is still the untouched one they are the same.
        self._next_ticket = state["next_ticket"] if self.prepared else 0
        self._groups.resume(state["log_position"], self._next_ticket)
        # A run that its budget of queries had ended has ended, unless the budget was raised.
        ends = self._settings.round_ends
        rounds = bisect_right(ends, self._next_ticket)
        if 0 < rounds < len(ends):
            following = range(ends[rounds - 1], ends[rounds])
            self.cycles = self.cycles if self._groups.affords(following) else rounds

    def state(self) -> dict[str, Any]:
        """What of it fits JSON."""
        return {
            "policy": self._steps.state(),
            "surrogate": None if self._surrogate is None else self._surrogate.state(),
            "prepared": self.prepared,
            "begun": self._begun,
            "uninformed": self._uninformed,
            "reward_moments": self._groups.moments,
            "next_ticket": self._next_ticket,
            "round_ends": [end for end in self._settings.round_ends if end <= self._next_ticket],
            "log_position": self._groups.index.position,
            "seconds": self.journal.seconds,
            "flops": self.journal.flops,
        }

    def _collect(self, tickets: range, version: int) -> None:
        self._groups.collect(tickets, version, self.journal.add_seconds)
        self._next_ticket = tickets.stop

    def _complete(self, tickets: range) -> list[int]:
        """Those with all their rewards; the first there are give what a run needs to begin.

        Until then every cycle leaves its policy steps out, so they are of the untouched policy.
        """
        complete = self._groups.complete(tickets)
        if complete and not self._begun:
            self._groups.standardise(complete)
            self._steps.prepare(self._groups, complete)
            self._begun = True
        return complete

    def _lack(self, tickets: range, cycle: int) -> str:
        """Begins a cycle's policy steps; what its samples lack for them, empty if nothing.

        Ranks answer alike: one alone would wait for ever in the first step.
        """
        lack, newest = "", self._complete(tickets)
        try:
            if not self._begun:
                raise NothingToLearnError(
                    "no group has all its rewards yet: see the quarantined records for the reasons"
                )
            self._steps.begin(self._groups, newest, cycle)
        except NothingToLearnError as error:
            lack = str(error)
        if any_rank(bool(lack)):
            return lack or "another rank of the learner has found nothing to learn from"
        return ""

    def _leave_out(self, cycle: int, lack: str) -> None:
        """A cycle that tells nothing; the last one where too many have, if the policy has learned
        before: its reward may be as high as it goes.

        Raises:
            ValueError: it is one too many, and the policy is still the untouched one.
        """
        self._uninformed += 1
        told = (
            f"the samples of {self._uninformed} cycles in a row, up to cycle {cycle}, told the "
            f"policy nothing, so the run ends; of the last one: {lack}"
        )
        if self._has_come_to_rest:
            if self._steps.steps_taken == 0:
                raise ValueError(told)
            self.cycles = cycle + 1
        else:
            told = f"cycle {cycle} leaves its policy steps out: {lack}"
        if self._seat.is_first:
            log.warning("%s", told)
        self.journal.record("policy", cycle, {"braked": 1.0})

    @property
    def _has_come_to_rest(self) -> bool:
        return self._uninformed >= most_in_a_row(self._settings.cycles)

    def _record_rewards(self, phase: str, step: int, rewards_GNK: torch.Tensor) -> None:
        means_K = rewards_GNK.mean(dim=(0, 1)).tolist()
        values = {
            f"reward_{label}": mean for label, mean in zip(self._labels, means_K, strict=True)
        }
        self.journal.record(phase, step, values)

    def _follow(self) -> None:
        """Moves the running average of the policy after a step."""
        if not self._averages:
            return
        if self._average is None:
            self._average = self._new_average()
        else:
            self._average.follow()

    @property
    def _averages(self) -> bool:
        """Whether this rank, which saves and publishes, keeps an average."""
        return self._settings.weight_average is not None and self._seat.is_first

    def _new_average(self) -> WeightAverage:
        assert self._settings.weight_average is not None
        trained = trained_parameters(self._policy_engine.module.unet)  # pyright: ignore
        return WeightAverage(trained, self._settings.weight_average)
