"""Measuring a policy on held-out prompts: true rewards and signs of their over-optimisation.

The same prompts and the same noise every time, apart from training's, so that two evaluations
differ by the policy alone. Also where a policy leaves the run: `export` writes what diffusers
loads.
Shape suffixes: B images, H W pixels.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from actors.prompts import seed_of
from actors.rollout import Group
from deploy.evaluation.distances import build_distance, mean_distance
from deploy.evaluation.kept import save_pictures
from deploy.evaluation.signals import colour_entropy, sharpness
from deploy.run.best_effort import BestEffort
from deploy.run.gpu_share import keep_to_share
from deploy.run.policy_build import device_of, policy_of
from deploy.settings.prompt_sources import prompt_set
from deploy.settings.run_config import RunConfig
from deploy.settings.sections import Metric, Reward
from learner.policy.components import PipelineFolder, decode_latents
from learner.policy.precision import round_frozen
from learner.policy.trainable import (
    load_arrays,
    save_for_diffusers,
    trainable_arrays,
    trainable_unet,
)
from reward_servers.base import Failure, RewardModel
from reward_servers.metadata import informed
from reward_servers.registry import build_reward
from reward_servers.timed import TimedReward, score_all

log = logging.getLogger(__name__)
NUM_PICTURES = 24


class Evaluator:
    """Holds a policy of its own; weights are handed in.

    Args:
        pooled: those of the trained rewards that are computed elsewhere; it builds the others.
    """

    def __init__(
        self, config: RunConfig, pooled: Mapping[str, RewardModel] = MappingProxyType({})
    ) -> None:
        self._config = config
        self._keeping = BestEffort("pictures of evaluations")
        self._rows, self._images = config.images_per_evaluation
        torch.set_num_threads(max(1, round(config.evaluation.threads)))
        keep_to_share(config.evaluation.num_gpus)
        pipeline = PipelineFolder.of(config.model)
        self._pipeline = pipeline
        device = device_of(config.evaluation.num_gpus)
        self._vae = pipeline.vae(device)
        round_frozen(self._vae, config.model.vae_precision, trained=True)
        held_out = prompt_set(config.evaluation.prompts, config.evaluation.seed)
        self._prompts, self._table = held_out.prompts, held_out.table
        self._singles = policy_of(
            config,
            pipeline,
            group_size=1,
            device=device,
            only_clean=True,
            prompts=self._prompts,
        )
        self._is_untouched = True
        self._asked = self._failed = 0  # scores, of the evaluation under way
        self._scores = [
            self._timed(name, metric) for name, metric in config.evaluation.rewards.items()
        ]
        self._distances = {
            name: build_distance(distance.kind, distance.args, device)
            for name, distance in config.evaluation.diversity.distances.items()
        }
        self._rewards = [
            self._timed(name, reward, pooled.get(name))
            for name, reward in config.rewards.items()
            if reward.weight != 0
        ]

    def evaluate(
        self, weights: Mapping[str, np.ndarray] | None, pictures: Path | None
    ) -> dict[str, float]:
        """Metrics by name: `exact_2step` of a score, `reward_2step` of what is trained on, which is
        the weighted sum of the rewards, and `reward_NAME_2step` of each where there are several. A
        score that no picture has is left out. Of the last step's pictures `colour_entropy` and
        `sharpness` (`deploy.evaluation.signals`); at a few fixed prompts `diversity` and, by other
        distances, `diversity_NAME`, and what the policy's `drift` from the untouched one is:
        `kl_nats`, `clean_distance`. Where scores failed, `unscored` is their share of all that were
        asked for: the means are over the others.

        Args:
            weights: None: the untouched policy.
            pictures: an .npz to write, of some pictures of the last step and their prompts.
        """
        self._load(weights)
        evaluation = self._config.evaluation
        groups = [
            Group(i, self._prompts[i % len(self._prompts)], seed_of(evaluation.seed, i))
            for i in range(evaluation.samples)
        ]
        latents_BKCHW = self._sample(groups)
        prompts = [group.prompt for group in groups]
        metrics: dict[str, float] = {}
        self._asked = self._failed = 0
        *earlier, last = self._config.step_labels
        for k, label in enumerate(earlier):
            metrics |= self._scores_at(label, self._decode(latents_BKCHW[:, k]), prompts)
        images_BHWC = self._decode(latents_BKCHW[:, -1])
        metrics |= self._scores_at(last, images_BHWC, prompts)
        if self._failed:
            metrics["unscored"] = self._failed / self._asked
        metrics["colour_entropy"] = colour_entropy(images_BHWC)
        metrics["sharpness"] = sharpness(images_BHWC)
        fixed = self._fixed_groups()
        metrics |= self._diversity(fixed)
        metrics |= self._drift(fixed)
        if pictures is not None:
            with self._keeping:
                save_pictures(pictures, images_BHWC[:NUM_PICTURES], prompts[:NUM_PICTURES])
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def export(self, weights: Mapping[str, np.ndarray] | None, folder: Path) -> str:
        """Writes the adapter or the UNet for diffusers; returns where. None: the untouched one."""
        unet = self._untouched()
        if weights is not None:
            load_arrays(unet, dict(weights))
        return str(save_for_diffusers(unet, self._config.model.trainable, folder))

    def _timed(
        self, name: str, setting: Reward | Metric, pooled: RewardModel | None = None
    ) -> TimedReward:
        model = pooled or informed(build_reward(setting.kind, setting.args), self._table)
        return TimedReward(name, model, timeout_s=self._config.scoring.timeout_s)

    def _load(self, weights: Mapping[str, np.ndarray] | None) -> None:
        if weights is not None:
            self._singles.load(weights)
        elif not self._is_untouched:
            self._singles.load(trainable_arrays(self._untouched()))
        self._is_untouched = weights is None

    def _untouched(self) -> UNet2DConditionModel:
        return trainable_unet(self._pipeline, self._config.model, seed=self._config.seed)

    def _sample(self, groups: list[Group]) -> torch.Tensor:
        rollouts = [
            rollout for batch in self._batches(groups) for rollout in self._singles.sample(batch)
        ]
        return torch.from_numpy(np.concatenate([rollout.latents for rollout in rollouts])).float()

    def _decode(self, latents_BCHW: torch.Tensor) -> np.ndarray:
        parts, precision = latents_BCHW.split(self._images), self._config.model.vae_precision
        return np.concatenate([decode_latents(self._vae, part, precision) for part in parts])

    def _scores_at(
        self, label: str, images_BHWC: np.ndarray, prompts: list[str]
    ) -> dict[str, float]:
        """Means of the scores and of the rewards, their weighted sum, and each of several alone."""
        metrics = {
            f"{score.name}_{label}": self._mean_score(score, images_BHWC, prompts)
            for score in self._scores
        }
        means = {r.name: self._mean_score(r, images_BHWC, prompts) for r in self._rewards}
        weights = {name: self._config.rewards[name].weight for name in means}
        metrics[f"reward_{label}"] = sum(weights[name] * mean for name, mean in means.items())
        if len(means) > 1:
            metrics |= {f"reward_{name}_{label}": mean for name, mean in means.items()}
        return metrics

    def check_rewards(self) -> None:
        """Raises StalledError where calls of a reward hang for good: it would score no more."""
        for reward in (*self._scores, *self._rewards):
            reward.check()

    def _mean_score(
        self, reward: TimedReward, images_BHWC: np.ndarray, prompts: list[str]
    ) -> float:
        """Mean over the pictures that have a score; failures are counted, and never as 0."""
        outcomes = score_all(
            reward,
            images_BHWC,
            prompts,
            batch=self._config.scoring.max_batch,
            attempts=self._config.replay.max_attempts,
        )
        values = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        failures = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
        self._asked += len(outcomes)
        self._failed += len(failures)
        if failures:
            log.warning(
                "evaluation: %s failed on %d of %d pictures, first: %s",
                reward.name, len(failures), len(outcomes), failures[0],
            )  # fmt: skip
        return float(np.mean(values)) if values else float("nan")

    def _fixed_groups(self) -> list[Group]:
        """Several noises for each of a few prompts."""
        settings = self._config.evaluation.diversity
        seed = self._config.evaluation.seed + 1
        return [
            Group(n, self._prompts[n // settings.per_prompt % len(self._prompts)], seed_of(seed, n))
            for n in range(settings.prompts * settings.per_prompt)
        ]

    def _diversity(self, groups: list[Group]) -> dict[str, float]:
        """Mean pairwise RMS distance of last-step latents at a fixed prompt, over prompts; and that
        of their pictures, by every distance of the settings."""
        settings = self._config.evaluation.diversity
        latents_BCHW = self._sample(groups)[:, -1]
        by_prompt = latents_BCHW.reshape(settings.prompts, settings.per_prompt, -1)
        apart = [torch.pdist(rows).mean() / rows.shape[1] ** 0.5 for rows in by_prompt]
        found = {"diversity": float(torch.stack(apart).mean())}
        if self._distances:
            images_BHWC = self._decode(latents_BCHW)
            for name, distance in self._distances.items():
                mean = mean_distance(distance, images_BHWC, settings.per_prompt)
                found[f"diversity_{name}"] = mean
        return found

    def _drift(self, groups: list[Group]) -> dict[str, float]:
        """Means of what tells the policy from the untouched one."""
        parts = [self._singles.drift(batch) for batch in self._batches(groups)]
        return {
            name: float(np.concatenate([part[name] for part in parts]).mean()) for name in parts[0]
        }

    def _batches(self, groups: list[Group]) -> Iterator[list[Group]]:
        return (groups[start : start + self._rows] for start in range(0, len(groups), self._rows))
