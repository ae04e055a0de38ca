"""A whole learner of a model of 50 steps that climbs a reward: SQDF, or DRaFT and its kin."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from actors.prompts import PromptSource
from actors.rollout import ManyStepPolicy
from actors.sampling import kept_states
from actors.worker import SamplerWorker
from learner.diffusion.strata import Strata
from learner.methods.alternation import Alternating
from learner.methods.build import BUILDERS
from learner.methods.parts import Given
from learner.policy.components import PipelineFolder
from learner.policy.denoiser import Denoiser
from learner.policy.trainable import load_arrays, trainable_unet
from learner.seat import Seat
from learner.settings.draft import Draft
from learner.settings.learner import Learner
from learner.settings.model import Model
from learner.settings.sqdf import Sqdf
from learner.states import kept_parts, strata_of
from tests.services.training_world import MEMBERS, PROMPTS, SEED, Shelf, World

STEPS = 50
_SMALL = {
    "reward": "decoded",
    "pretrain": {"groups": 2},
    "cycles": 3,
    "groups_per_cycle": 2,
    "policy_steps": 1,
    "policy_batch": 2,
    "learning_rate": 1e-3,
}
SQDF = Sqdf.model_validate({**_SMALL, "clean": {"by": "tweedie"}, "states": {"kept": 2}})
DRAFT = Draft.model_validate(_SMALL)
LEARNS = {
    "reward": "surrogate",
    "surrogate": {"backbone": "conv", "heads": 2, "confidence": "bootstrap", "batch_groups": 2},
    "pretrain": {"groups": 4, "max_steps": 4, "check_every_steps": 2, "holdout_share": 0.34},
    "surrogate_steps": 1,
}
SEIKO = Draft.model_validate({**_SMALL, **LEARNS})


class Bright(nn.Module):
    """The mean pixel, to be climbed."""

    def forward(self, images_BCHW: Tensor, prompts: list[str]) -> Tensor:
        return images_BCHW.flatten(1).mean(dim=1)

    def score(self, images_BHWC: np.ndarray, prompts: list[str]) -> np.ndarray:
        return images_BHWC.mean(axis=(1, 2, 3), dtype=np.float32)


@dataclass
class ManyStepWorld(World):
    """As its base, of many steps.

    Args:
        climbing: the method's settings, in the place of `settings`.
    """

    climbing: Sqdf | Draft = SQDF

    @property
    def model(self) -> Model:
        if self.other_model is not None:
            return self.other_model
        return Model(
            path=str(self.pipelines / "base"),
            num_steps=STEPS,
            lora_rank=2,
            lora_alpha=2,
            guidance_scale=1.0,
        )

    def _method(self, stopping: threading.Event) -> Alternating:
        given = Given(
            self.model,
            Learner(),
            self._source(stopping),
            PROMPTS,
            Seat(SEED),
            rewards={} if self.climbing.learns_surrogate else {"brightness": Bright()},
        )
        return BUILDERS[self.climbing.kind](self.climbing, given)

    def _sampler(self, shelf: Shelf, number: int) -> SamplerWorker:
        pipeline = PipelineFolder.of(self.model)
        unet = trainable_unet(pipeline, self.model, seed=SEED)
        policy = ManyStepPolicy(
            network=Denoiser(unet, self.precision),
            encode=pipeline.prompt_encoder(),
            take=lambda weights: load_arrays(unet, dict(weights)),
            schedule=pipeline.schedule,
            latent_shape=pipeline.latent_shape,
            group_size=MEMBERS,
            num_steps=STEPS,
            guidance_scale=self.model.guidance_scale,
            keep=_keep(self._strata()),
        )
        return SamplerWorker(
            self.replay(),
            PromptSource(PROMPTS, run_seed=SEED),
            shelf,
            policy,
            owner=f"sampler-{number}",
            loaded_version=0,
        )

    def _strata(self) -> Strata | None:
        if isinstance(self.climbing, Sqdf):
            return strata_of(self.climbing, STEPS)
        return kept_parts(self.climbing, STEPS)


def _keep(strata: Strata | None) -> Callable[[int], tuple[int, ...]]:
    return lambda seed: () if strata is None else kept_states(seed, strata)
