"""Fitting the surrogate to true rewards: steps, held-out accuracy, bootstrap heads.

Shape suffixes: G groups, N samples of a group, K rewarded steps, C H W latent, H heads.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from buffer.sampling import Pairs, best_worst_pairs, ordered_pairs
from learner.agreement import rank_correlation, standard_gap
from learner.collectives import mean_over_ranks, rank_mean
from learner.engine import Engine
from learner.group_batch import GroupBatch
from learner.policy.text import Encode
from learner.preference import (
    bootstrap_counts,
    bradley_terry_loss,
    members,
    pair_accuracy,
    pair_weights,
    pessimistic,
    regression_loss,
)
from learner.settings.surrogate import Surrogate

_ALIKE = 1e-6
"""Rewards with a smaller deviation are as good as equal."""


@dataclass(frozen=True)
class RewardMoments:
    """Mean and standard deviation of the reward at each step, to standardise targets.

    One of each where all steps share a scale.
    """

    means: tuple[float, ...]
    stds: tuple[float, ...]

    @classmethod
    def of(cls, rewards_GNK: Tensor, *, by_step: bool = True) -> "RewardMoments":
        """Over all samples: of each step, or of all steps together.

        A step at which all rewards are alike, such as the first at which nothing is right yet, has
        the deviation of all steps: later samples are measured by it.
        """
        flat = rewards_GNK.flatten(0, 1).double()
        flat = flat if by_step else flat.flatten()[:, None]
        stds = torch.where(flat.std(dim=0) > _ALIKE, flat.std(dim=0), flat.std())
        return cls(tuple(flat.mean(dim=0).tolist()), tuple(stds.tolist()))

    def standardise(self, rewards_GNK: Tensor) -> Tensor:
        """With these moments 0 and 1, float32 [G, N, K]."""
        means, stds = torch.tensor(self.means), torch.tensor(self.stds)
        return ((rewards_GNK - means) / torch.where(stds > _ALIKE, stds, 1.0)).float()


class SurrogateTrainer:
    """The surrogate under its engine.

    Args:
        engine: of a surrogate module.
        encode: prompts -> text states.
        tells_steps: whether the module is told which step a latent is of.
        groups_at_once: of those that are measured: as many as a step has on one rank, which fit.
            None: as many as a step has.
    """

    def __init__(
        self,
        settings: Surrogate,
        engine: Engine,
        encode: Encode,
        *,
        tells_steps: bool = True,
        groups_at_once: int | None = None,
    ) -> None:
        self._settings = settings
        self._at_once = groups_at_once or settings.batch_groups
        self._tells_steps = tells_steps
        self._engine = engine
        self._encode = encode
        self.moments: RewardMoments | None = None

    def standardise(self, rewards_GNK: Tensor) -> None:
        """Takes the moments from rewards of the untouched policy."""
        self.moments = RewardMoments.of(rewards_GNK, by_step=self._tells_steps)

    def step(self, batch: GroupBatch) -> dict[str, float]:
        """One update on this rank's groups; returns losses, and the accuracy before it."""
        assert self.moments is not None, "set the reward moments before the first step"
        pairs = self._pairs(batch.rewards_GNK)
        counts_GH = bootstrap_counts(
            len(batch.tickets),
            self._settings.heads,
            torch.tensor([_bootstrap_seed(ticket) for ticket in batch.tickets]),
        )
        scores_GNKH = self._call(batch, self._engine).view(*batch.rewards_GNK.shape, -1)
        winner_PH, loser_PH = members(scores_GNKH, pairs)
        weight_PH = pair_weights(pairs, counts_GH)
        ranking = bradley_terry_loss(
            winner_PH, loser_PH, weight_PH, total=rank_mean(weight_PH.sum())
        )
        regression = regression_loss(
            scores_GNKH,
            self.moments.standardise(batch.rewards_GNK),
            counts_GH,
            total=rank_mean(counts_GH.sum()),
        )
        norm = self._engine.update([ranking + self._settings.regression_weight * regression])
        num_pairs = len(pairs.position)
        accuracy = pair_accuracy(scores_GNKH.detach().mean(dim=3), pairs) if num_pairs else 0.0
        told = mean_over_ranks(
            {
                "ranking_loss": float(ranking.detach()),
                "regression_loss": float(regression.detach()),
                "surrogate_gradient_norm": norm,
                "right": accuracy * num_pairs,
                "pairs": float(num_pairs),
            }
        )
        right, pairs_of_all = told.pop("right"), told.pop("pairs")
        return {**told, "train_accuracy": right / pairs_of_all if pairs_of_all else math.nan}

    @torch.no_grad()
    def accuracy(self, batch: GroupBatch) -> list[float]:
        """Share of all ordered pairs that the surrogate orders rightly, at each of K steps."""
        return self._accuracy(self._measured(batch), batch.rewards_GNK)

    @torch.no_grad()
    def judge(self, batches: Iterable[GroupBatch]) -> dict[str, list[float]]:
        """How it stands to the truth, by name, at each of K steps, on all of the batches together.

        `accuracy` as above, `rank_correlation` within groups, and the `gap`: by how much the mean
        of its heads is above the standardised reward. The latter only where a regression ties its
        scores to the reward's size.
        """
        assert self.moments is not None, "set the reward moments before judging"
        parts = [(self._measured(batch), batch.rewards_GNK) for batch in batches]
        scores_GNKH, true_GNK = (torch.cat(each) for each in zip(*parts, strict=True))
        own_GNK = self._pessimistic(scores_GNKH).numpy()
        rewards_GNK = self.moments.standardise(true_GNK).numpy()
        each = range(own_GNK.shape[2])
        judged = {
            "accuracy": self._accuracy(scores_GNKH, true_GNK),
            "rank_correlation": [
                rank_correlation(own_GNK[..., k], rewards_GNK[..., k]) for k in each
            ],
        }
        if self._settings.regression_weight > 0:
            mean_GNK = scores_GNKH.mean(dim=3).numpy()
            judged["gap"] = [standard_gap(mean_GNK[..., k], rewards_GNK[..., k]) for k in each]
        return judged

    @torch.no_grad()
    def features(self, batch: GroupBatch) -> Tensor:
        """Of the last layer but one, [labels, F], on the CPU."""
        module: Any = self._engine.module
        return self._in_parts(batch, lambda *inputs: module.read(*inputs)[1])

    @property
    def num_features(self) -> int:
        """F of `features`."""
        module: Any = self._engine.module
        return module.head.hidden.out_features

    def _accuracy(self, scores_GNKH: Tensor, rewards_GNK: Tensor) -> list[float]:
        pairs = ordered_pairs(rewards_GNK.numpy())
        scores_GNK = self._pessimistic(scores_GNKH)
        return [pair_accuracy(scores_GNK, pairs, k) for k in range(scores_GNK.shape[2])]

    def _pessimistic(self, scores_GNKH: Tensor) -> Tensor:
        scores_B = pessimistic(scores_GNKH.flatten(0, 2), self._settings.pessimism)
        return scores_B.view(scores_GNKH.shape[:3])

    def _pairs(self, rewards_GNK: Tensor) -> Pairs:
        rule = best_worst_pairs if self._settings.loss == "best_worst" else ordered_pairs
        return rule(rewards_GNK.numpy())

    def _measured(self, batch: GroupBatch) -> Tensor:
        """Scores [G, N, K, H] of all latents, without the engine."""
        return self._in_parts(batch, self._engine.module).view(*batch.rewards_GNK.shape, -1)

    def _in_parts(self, batch: GroupBatch, call: Callable[..., Tensor]) -> Tensor:
        """As `_call`, a few groups after the others."""
        starts = range(0, len(batch.tickets), self._at_once)
        return torch.cat([self._call(batch[i : i + self._at_once], call) for i in starts])

    def _call(self, batch: GroupBatch, call: Callable[..., Tensor]) -> Tensor:
        """A row for every latent; back on the CPU, where the rewards are."""
        groups, samples, steps = batch.rewards_GNK.shape
        device = self._engine.device
        text = self._encode(list(batch.prompts)).repeat_interleave(samples * steps)
        step_B = torch.arange(steps).repeat(groups * samples)
        if not self._tells_steps:
            step_B = torch.zeros_like(step_B)
        latents = batch.latents_GNKCHW.flatten(0, 2)
        return call(latents.to(device), text.to(device), step_B.to(device)).cpu()


def _bootstrap_seed(ticket: int) -> int:
    # Neighbouring seeds of torch's generator start alike; a hash sets them apart.
    return int.from_bytes(hashlib.blake2b(str(ticket).encode(), digest_size=7).digest())
