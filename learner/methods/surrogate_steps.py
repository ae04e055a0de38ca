"""The surrogate's side of an alternation: fitted before the first cycle, adapted in every one.

True rewards come from the replay alone, and are never differentiated.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.collectives import mean_over_ranks, rank_mean
from learner.engine import Engine
from learner.exploration import Climb, gram
from learner.group_batch import GroupBatch
from learner.groups import ScoredGroups
from learner.journal import Journal
from learner.seat import Seat
from learner.settings.cycles import Alternation
from learner.surrogate_training import RewardMoments, SurrogateTrainer

log = logging.getLogger(__name__)
_FRESH_SHARE = 0.5
"""Of a surrogate batch in a cycle: from the newest groups; the rest from all of the replay."""
_AT_ONCE = 64
_GRAM_FILE = "gram.safetensors"


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


class SurrogateSteps:
    """Fits, judges and adapts the surrogate on one rank.

    Args:
        labels: of the rewarded latents of a trajectory, such as '2step'.
    """

    def __init__(
        self,
        settings: Alternation,
        trainer: SurrogateTrainer,
        engine: Engine,
        climb: Climb,
        *,
        groups: ScoredGroups,
        labels: Sequence[str],
        journal: Journal,
        seat: Seat,
    ) -> None:
        self._settings = settings
        self._trainer = trainer
        self._engine = engine
        self._climb = climb
        self._groups = groups
        self._labels = list(labels)
        self._journal = journal
        self._seat = seat
        self._fit = SurrogateFit()
        self._step = 0
        self._fresh_accuracy = 1.0

    @property
    def guides(self) -> bool:
        """Whether it was right often enough on the newest samples to be climbed."""
        return self._fresh_accuracy >= self._settings.accuracy_brake

    def standardise(self, rewards_GNK: Tensor) -> None:
        """Takes the rewards' moments from groups of the untouched policy.

        Raises:
            ValueError: they are too much alike for a surrogate to learn from.
        """
        ranked = bool((rewards_GNK != rewards_GNK[:, :1]).any())
        sized = self._settings.surrogate.regression_weight > 0
        if not (ranked or (sized and rewards_GNK.unique().numel() > 1)):
            raise ValueError(
                f"in none of {len(rewards_GNK)} groups one picture has a better reward than "
                "another, so a surrogate has nothing to learn: look at the reward, which may be "
                "the same for all, or sample more (method.pretrain.groups, actors.group_size)"
            )
        self._trainer.standardise(rewards_GNK)

    def fit(self, tickets: list[int], breathe: Callable[[], None]) -> None:
        """Steps until the held-out accuracy is reached, or stops rising."""
        settings, fit = self._settings.pretrain, self._fit
        held_out = tickets[:: settings.held_out_stride]
        apart = set(held_out)
        train = [ticket for ticket in tickets if ticket not in apart]
        while fit.steps < settings.max_steps and fit.stale < settings.patience:
            breathe()
            with self._journal.timed("surrogate"):
                metrics = self._update(train, [])
                fit.steps += 1
                if fit.steps % settings.check_every_steps and fit.steps < settings.max_steps:
                    continue
                accuracies = self._held_out_accuracy(held_out)
            accuracy = float(np.nanmean(list(accuracies.values())))
            self._journal.record("pretrain", fit.steps, {**metrics, **accuracies})
            log.info("surrogate step %d: held-out pair accuracy %.3f", fit.steps, accuracy)
            if accuracy >= settings.target_accuracy:
                break
            fit.judge(accuracy)
        self._count_labels(tickets)

    def judge(self, cycle: int, tickets: Sequence[int]) -> None:
        """How it stands to the truth on fresh samples; how many pairs it has right is kept."""
        judged = self._trainer.judge(self._batches(tickets))
        known = [accuracy for accuracy in judged["accuracy"] if not math.isnan(accuracy)]
        # One number for all ranks: each judges what its own log has, and they decide together.
        told = mean_over_ranks({"sum": float(sum(known)), "count": float(len(known))})
        if told["count"]:  # without any pair, in groups of equal rewards, the last one stands
            self._fresh_accuracy = told["sum"] / told["count"]
        named = {
            f"fresh_{what}_{label}": value
            for what, values in judged.items()
            for label, value in zip(self._labels, values, strict=True)
        }
        self._journal.record("fresh", cycle, named)

    def adapt(self, cycle: int, known: Sequence[int], fresh: Sequence[int]) -> None:
        """n_s steps on groups of the replay, half of them fresh; none of a frozen one."""
        with self._journal.timed("surrogate"):
            metrics: dict[str, float] = {}
            for _ in range(self._settings.surrogate_steps):
                metrics = self._update(known, fresh)
                self._groups.top_up()
        self._count_labels([*known, *fresh])
        if metrics:
            self._journal.record("surrogate", cycle, metrics)

    def save(self, folder: Path, *, first: bool) -> None:
        """Weights and optimizer; every rank must call it, and one is the first."""
        self._engine.save(folder / "surrogate", {})
        if first and self._climb.gram_FF is not None:
            save_file({"gram": self._climb.gram_FF}, folder / _GRAM_FILE)

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Restores `save` and `state`."""
        self._engine.load(folder / "surrogate")
        if (folder / _GRAM_FILE).exists():
            self._climb.gram_FF = load_file(folder / _GRAM_FILE)["gram"]
        self._trainer.moments = RewardMoments(**state["moments"])
        self._fit = SurrogateFit(**state["fit"])
        self._step = state["step"]
        self._fresh_accuracy = state["fresh_accuracy"]

    def state(self) -> dict[str, Any]:
        """What fits JSON."""
        assert self._trainer.moments is not None
        return {
            "moments": asdict(self._trainer.moments),
            "fit": asdict(self._fit),
            "step": self._step,
            "fresh_accuracy": self._fresh_accuracy,
        }

    def _count_labels(self, tickets: Sequence[int]) -> None:
        """For `ucb`: the Gram matrix of all labels, by the network as it is now."""
        if self._settings.surrogate.confidence != "ucb":
            return
        mine, parts = list(tickets)[self._seat.share], []
        with self._journal.timed("surrogate"):
            for batch in self._batches(mine):
                with self._journal.counted("surrogate", f"labels of {len(batch.tickets)} groups"):
                    parts.append(gram(self._trainer.features(batch)))
        width = self._trainer.num_features
        own = torch.stack(parts).sum(dim=0) if parts else torch.zeros(width, width).double()
        self._climb.gram_FF = rank_mean(own) * self._seat.ranks

    def _held_out_accuracy(self, tickets: list[int]) -> dict[str, float]:
        """One answer for all ranks, so that all stop at the same step."""
        measured = [
            (len(batch.tickets), self._trainer.accuracy(batch)) for batch in self._batches(tickets)
        ]
        sizes, parts = zip(*measured, strict=True)
        known = np.ma.masked_invalid(np.array(parts))
        means: Any = np.ma.average(known, axis=0, weights=sizes)
        return mean_over_ranks(
            {
                f"heldout_accuracy_{label}": float(x)
                for label, x in zip(self._labels, means.filled(math.nan), strict=True)
            }
        )

    def _batches(self, tickets: Sequence[int]) -> Iterator[GroupBatch]:
        """Groups to measure something on, some at a time: their latents may be many."""
        for i in range(0, len(tickets), _AT_ONCE):
            yield self._groups.fetch(tickets[i : i + _AT_ONCE], to_learn=False)

    def _update(self, known: Sequence[int], fresh: Sequence[int]) -> dict[str, float]:
        """One step on a batch that every rank draws alike and takes its share of."""
        rng = np.random.default_rng([self._seat.seed, 1, self._step])
        self._step += 1
        size = self._settings.surrogate.batch_groups
        num_fresh = min(len(fresh), math.ceil(size * _FRESH_SHARE)) if known else size
        newest = rng.permutation(np.asarray(fresh, dtype=np.int64))[:num_fresh]
        older = rng.permutation(np.asarray(known, dtype=np.int64))[: size - len(newest)]
        # Too few groups come again, so that every rank has its share.
        drawn = np.resize(np.concatenate([newest, older]), size)
        mine = drawn[self._seat.share].tolist()
        batch = self._groups.fetch(mine)
        # Groups that were evicted meanwhile make a batch smaller.
        with self._journal.counted("surrogate", str(len(batch.tickets))):
            return self._trainer.step(batch)
