"""A surrogate of the reward and a policy that take turns, on one rank; LaSRO's scheme.

    prepare   tickets [0, P) by version 0 ─► fit the surrogate until held-out accuracy
    improve   n_g policy steps up the surrogate                      cycle c
    adapt     tickets of cycle c by version c + 1 ─► n_s surrogate steps

What a policy step is, a method says (`PolicySteps`). True rewards come from the replay alone, and
are never differentiated.
Shape suffixes: G groups, N samples of a group, K rewarded steps.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from learner.engine import Engine
from learner.groups import ScoredGroups
from learner.policy.trainable import trainable_arrays
from learner.seat import Seat
from learner.settings import Alternation
from learner.surrogate_training import RewardMoments, SurrogateTrainer
from learner.trainer import Journal, Weights

log = logging.getLogger(__name__)
_FRESH_SHARE = 0.5
"""Of a surrogate batch in a cycle: from the newest groups; the rest from all of the replay."""


@dataclass
class SurrogateFit:
    """How far the fit before the first cycle has come.

    Attributes:
        best: highest held-out accuracy so far.
        stale: checks in a row that did not raise it.
    """

    steps: int = 0
    best: float = 0.0
    stale: int = 0

    def judge(self, accuracy: float) -> None:
        """Notes the accuracy of a check."""
        if accuracy > self.best + 1e-3:
            self.best, self.stale = accuracy, 0
        else:
            self.stale += 1


class PolicySteps(Protocol):
    """What a method adds to the alternation; all ranks call everything in the same order."""

    def prepare(self, groups: ScoredGroups, tickets: Sequence[int]) -> None:
        """Takes what it needs from the groups of the untouched policy."""
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

    Args:
        labels: of the rewarded latents of a trajectory, such as '2step', for the curves.
    """

    def __init__(
        self,
        settings: Alternation,
        steps: PolicySteps,
        *,
        groups: ScoredGroups,
        labels: Sequence[str],
        policy_engine: Engine,
        surrogate: SurrogateTrainer,
        surrogate_engine: Engine,
        seat: Seat,
    ) -> None:
        self.cycles = settings.cycles
        self.journal = Journal()
        self.prepared = False
        self._settings = settings
        self._groups = groups
        self._steps = steps
        self._labels = list(labels)
        self._policy_engine = policy_engine
        self._surrogate = surrogate
        self._surrogate_engine = surrogate_engine
        self._seat = seat
        self._fit = SurrogateFit()
        self._surrogate_step = 0
        self._next_ticket = 0
        self._fresh_accuracy = 1.0
        self._average: Weights | None = None

    def prepare(self, breathe: Callable[[], None]) -> None:
        """Collects groups of the untouched policy and fits the surrogate to their rewards."""
        count = self._settings.pretrain.groups
        self.journal.enter("collecting")
        self._collect(range(count), version=0)
        everything = self._groups.complete(range(count))
        if len(everything) < 2:
            raise ValueError(
                f"only {len(everything)} of {count} groups have all their rewards; see the "
                "quarantined records for the reasons"
            )
        if self._surrogate.moments is None:
            rewards_GNK = self._groups.rewards(everything)
            self._surrogate.moments = RewardMoments.of(rewards_GNK)
            self._record_rewards("pretrain", 0, rewards_GNK)
            self._steps.prepare(self._groups, everything)
        self.journal.enter("fitting the surrogate")
        self._fit_surrogate(everything, breathe)
        self.prepared = True

    def improve(self, cycle: int) -> None:
        """n_g policy steps, unless the surrogate was no guide on the newest samples."""
        self.journal.enter("training")
        if self._fresh_accuracy < self._settings.accuracy_brake:
            self.journal.record("policy", cycle, {"braked": 1.0})
            return
        with self.journal.timed("policy"):
            for _ in range(self._settings.policy_steps):
                metrics = self._steps.step()
                self._follow()
        self.journal.record("policy", cycle, {"braked": 0.0, **metrics})

    def adapt(self, cycle: int, *, last: bool) -> None:
        """Fresh groups of the new policy: how good the surrogate still is, then n_s steps."""
        settings = self._settings
        first = settings.pretrain.groups + cycle * settings.groups_per_cycle
        fresh_range = range(first, first + settings.groups_per_cycle)
        self._collect(fresh_range, version=cycle + 1)
        fresh = self._groups.complete(fresh_range)
        if fresh:
            self._judge(cycle, fresh)
        # Older ones than the replay keeps are not drawn.
        oldest = max(0, fresh_range.stop - self._groups.source.capacity_groups)
        known = self._groups.complete(range(oldest, first))
        if last or not (fresh or known):
            return
        with self.journal.timed("surrogate"):
            metrics: dict[str, float] = {}
            for _ in range(settings.surrogate_steps):
                metrics = self._surrogate_update(known, fresh)
        self.journal.record("surrogate", cycle, metrics)

    def weights(self) -> Weights:
        return trainable_arrays(self._policy_engine.module.unet)  # pyright: ignore

    def final_weights(self) -> Weights:
        """The running average if there is one."""
        if self._average is None:
            return self.weights()
        return {name: value.astype(np.float32) for name, value in self._average.items()}

    def save(self, folder: Path) -> None:
        self._policy_engine.save(folder / "policy", {})
        self._surrogate_engine.save(folder / "surrogate", {})
        if self._seat.is_first:
            self._steps.save(folder)
            if self._average is not None:
                save_file(self._average, folder / "average.safetensors")

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        self._policy_engine.load(folder / "policy")
        self._surrogate_engine.load(folder / "surrogate")
        self._steps.load(folder, state["policy"])
        self._surrogate.moments = RewardMoments(**state["moments"])
        self._surrogate_step = state["surrogate_step"]
        self._fresh_accuracy = state["fresh_accuracy"]
        self.journal.seconds = state["seconds"]
        self.prepared = state["prepared"]
        self._fit = SurrogateFit(**state["fit"])
        if (folder / "average.safetensors").exists():
            self._average = load_file(folder / "average.safetensors")
        self._next_ticket = state["next_ticket"]
        self._groups.resume(state["log_position"], self._next_ticket)

    def state(self) -> dict[str, Any]:
        assert self._surrogate.moments is not None
        return {
            "policy": self._steps.state(),
            "moments": asdict(self._surrogate.moments),
            "surrogate_step": self._surrogate_step,
            "fresh_accuracy": self._fresh_accuracy,
            "prepared": self.prepared,
            "fit": asdict(self._fit),
            "next_ticket": self._next_ticket,
            "log_position": self._groups.index.position,
            "seconds": self.journal.seconds,
        }

    def _collect(self, tickets: range, version: int) -> None:
        with self.journal.timed("waiting"):
            self._groups.collect(tickets, version)
        self._next_ticket = tickets.stop

    def _fit_surrogate(self, tickets: list[int], breathe: Callable[[], None]) -> None:
        """Steps until the held-out accuracy is reached, or stops rising."""
        settings, fit = self._settings.pretrain, self._fit
        stride = max(2, round(1 / settings.holdout_share))
        held_out = tickets[::stride]
        train = [ticket for ticket in tickets if ticket not in set(held_out)]
        while fit.steps < settings.max_steps and fit.stale < settings.patience:
            breathe()
            with self.journal.timed("surrogate"):
                metrics = self._surrogate_update(train, [])
                fit.steps += 1
                if fit.steps % settings.check_every_steps and fit.steps < settings.max_steps:
                    continue
                accuracies = self._held_out_accuracy(held_out)
            accuracy = float(np.nanmean(list(accuracies.values())))
            self.journal.record("pretrain", fit.steps, {**metrics, **accuracies})
            log.info("surrogate step %d: held-out pair accuracy %.3f", fit.steps, accuracy)
            if accuracy >= settings.target_accuracy:
                return
            fit.judge(accuracy)

    def _held_out_accuracy(self, tickets: list[int]) -> dict[str, float]:
        """All ranks measure the same groups, so all stop at the same step."""
        parts = [
            self._surrogate.accuracy(self._groups.fetch(tickets[i : i + 64]))
            for i in range(0, len(tickets), 64)
        ]
        means = np.nanmean(np.array(parts), axis=0)
        return {
            f"heldout_accuracy_{label}": float(x)
            for label, x in zip(self._labels, means, strict=True)
        }

    def _surrogate_update(self, known: Sequence[int], fresh: Sequence[int]) -> dict[str, float]:
        """One step on a batch that every rank draws alike and takes its share of."""
        rng = np.random.default_rng([self._seat.seed, 1, self._surrogate_step])
        self._surrogate_step += 1
        size = self._settings.surrogate.batch_groups
        num_fresh = min(len(fresh), math.ceil(size * _FRESH_SHARE)) if known else size
        newest = rng.permutation(np.asarray(fresh, dtype=np.int64))[:num_fresh]
        older = rng.permutation(np.asarray(known, dtype=np.int64))[: size - len(newest)]
        # Too few groups come again, so that every rank has its share.
        drawn = np.resize(np.concatenate([newest, older]), size)
        mine = drawn[self._seat.share].tolist()
        return self._surrogate.step(self._groups.fetch(mine))

    def _judge(self, cycle: int, fresh: list[int]) -> None:
        """Rewards of the fresh samples, and how many of their pairs the surrogate has right."""
        batch = self._groups.fetch(fresh)
        accuracies = self._surrogate.accuracy(batch)
        known = [accuracy for accuracy in accuracies if not math.isnan(accuracy)]
        if known:  # without any pair, in groups of equal rewards, the last judgement stands
            self._fresh_accuracy = float(np.mean(known))
        named = {
            f"fresh_accuracy_{label}": a for label, a in zip(self._labels, accuracies, strict=True)
        }
        self.journal.record("fresh", cycle, named)
        self._record_rewards("fresh", cycle, batch.rewards_GNK)

    def _record_rewards(self, phase: str, step: int, rewards_GNK: torch.Tensor) -> None:
        means_K = rewards_GNK.mean(dim=(0, 1)).tolist()
        values = {
            f"reward_{label}": mean for label, mean in zip(self._labels, means_K, strict=True)
        }
        self.journal.record(phase, step, values)

    def _follow(self) -> None:
        """Moves the running average of the policy after a step."""
        decay = self._settings.weight_average
        if decay is None:
            return
        now = self.weights()
        if self._average is None:
            self._average = now
        else:
            for name, value in self._average.items():
                value += (1 - decay) * (now[name] - value)
