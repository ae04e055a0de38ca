"""Measuring a policy on held-out prompts with true rewards and noise of its own.

The same prompts and the same noise every time, so that before and after differ by the policy
alone. Also where a policy leaves the run: `export` writes what diffusers loads.
Shape suffixes: B images, H W pixels.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from actors.prompts import seed_of
from actors.rollout import Group, Policy
from deploy.build import device_of, policy_of, prompt_list
from deploy.run_config import RunConfig
from learner.policy.components import PipelineFolder, decode_latents
from learner.policy.trainable import load_arrays, save_for_diffusers, trainable_unet
from reward_servers.base import Failure
from reward_servers.registry import build_reward
from reward_servers.timed import TimedReward, score_all

log = logging.getLogger(__name__)
_BATCH = 128
NUM_PICTURES = 24


class Evaluator:
    """Holds a policy of its own; weights are handed in."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        torch.set_num_threads(max(1, round(config.evaluation.threads)))
        pipeline = PipelineFolder.locate(config.model.path)
        self._pipeline = pipeline
        device = device_of(config.evaluation.num_gpus)
        self._vae = pipeline.vae(device)
        self._singles = policy_of(config, pipeline, group_size=1, device=device, only_clean=True)
        self._prompts = prompt_list(config.evaluation.prompts, config.evaluation.seed)
        timeout_s = config.scoring.timeout_s
        self._scores = [
            TimedReward(name, build_reward(metric.kind, metric.args), timeout_s=timeout_s)
            for name, metric in config.evaluation.rewards.items()
        ]
        self._rewards = [
            TimedReward(name, build_reward(reward.kind, reward.args), timeout_s=timeout_s)
            for name, reward in config.rewards.items()
            if reward.weight != 0
        ]

    def evaluate(
        self, weights: Mapping[str, np.ndarray] | None, pictures: Path | None
    ) -> dict[str, float]:
        """Metrics by name: `exact_2step` of a score, `reward_2step` of what is trained on, which is
        the weighted sum of the rewards, `reward_NAME_2step` of each where there are several, and
        `diversity`. A score that no picture has is left out.

        Args:
            weights: None: the policy as it is loaded now, at first the untouched one.
            pictures: an .npz to write, of some pictures at each step and their prompts.
        """
        if weights is not None:
            self._singles.load(weights)
        evaluation = self._config.evaluation
        groups = [
            Group(i, self._prompts[i % len(self._prompts)], seed_of(evaluation.seed, i))
            for i in range(evaluation.samples)
        ]
        latents_BKCHW = self._sample(self._singles, groups)
        prompts = [group.prompt for group in groups]
        metrics: dict[str, float] = {}
        drawn = {}
        for k, label in enumerate(self._config.step_labels):
            images_BHWC = self._decode(latents_BKCHW[:, k])
            drawn[label] = images_BHWC[:NUM_PICTURES]
            for score in self._scores:
                name = f"{score.name}_{label}"
                metrics[name] = self._mean_score(score, images_BHWC, prompts)
            metrics |= self._mean_rewards(label, images_BHWC, prompts)
        metrics["diversity"] = self._diversity()
        if pictures is not None:
            pictures.parent.mkdir(parents=True, exist_ok=True)
            last = drawn[self._config.step_labels[-1]]
            np.savez_compressed(pictures, images=last, prompts=np.array(prompts[:NUM_PICTURES]))
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def export(self, weights: Mapping[str, np.ndarray], folder: Path) -> str:
        """Writes the adapter or the UNet for diffusers; returns where."""
        unet = trainable_unet(self._pipeline, self._config.model, seed=self._config.seed)
        load_arrays(unet, dict(weights))
        return str(save_for_diffusers(unet, self._config.model.trainable, folder))

    def _sample(self, policy: Policy, groups: list[Group]) -> torch.Tensor:
        rollouts = [
            rollout
            for start in range(0, len(groups), _BATCH)
            for rollout in policy.sample(groups[start : start + _BATCH])
        ]
        return torch.from_numpy(np.concatenate([rollout.latents for rollout in rollouts])).float()

    def _decode(self, latents_BCHW: torch.Tensor) -> np.ndarray:
        parts = latents_BCHW.split(_BATCH)
        return np.concatenate([decode_latents(self._vae, part) for part in parts])

    def _mean_rewards(
        self, label: str, images_BHWC: np.ndarray, prompts: list[str]
    ) -> dict[str, float]:
        """The weighted sum of the means of all rewards that are trained on; several also alone."""
        means = {r.name: self._mean_score(r, images_BHWC, prompts) for r in self._rewards}
        weights = {name: self._config.rewards[name].weight for name in means}
        metrics = {f"reward_{label}": sum(weights[name] * mean for name, mean in means.items())}
        if len(means) > 1:
            metrics |= {f"reward_{name}_{label}": mean for name, mean in means.items()}
        return metrics

    def _mean_score(
        self, reward: TimedReward, images_BHWC: np.ndarray, prompts: list[str]
    ) -> float:
        """Mean over the pictures that have a score; failures are said, never counted as 0."""
        outcomes = score_all(
            reward,
            images_BHWC,
            prompts,
            batch=self._config.scoring.max_batch,
            attempts=self._config.replay.max_attempts,
        )
        values = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        failures = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
        if failures:
            log.warning(
                "evaluation: %s failed on %d of %d pictures, first: %s",
                reward.name, len(failures), len(outcomes), failures[0],
            )  # fmt: skip
        return float(np.mean(values)) if values else float("nan")

    def _diversity(self) -> float:
        """Mean pairwise RMS distance of last-step latents at a fixed prompt, over prompts."""
        settings = self._config.evaluation.diversity
        seed = self._config.evaluation.seed + 1
        groups = [
            Group(n, self._prompts[n // settings.per_prompt % len(self._prompts)], seed_of(seed, n))
            for n in range(settings.prompts * settings.per_prompt)
        ]
        latents = self._sample(self._singles, groups)[:, -1].flatten(1)
        by_prompt = latents.view(settings.prompts, settings.per_prompt, -1)
        distances = [torch.pdist(rows).mean() / rows.shape[1] ** 0.5 for rows in by_prompt]
        return float(torch.stack(distances).mean())
