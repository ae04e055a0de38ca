"""One rank of a tiny learner, as a process of its own.

    python rank_program.py RANK RANKS PORT STAGE,... FOLDER

For every ZeRO stage: two surrogate steps and two policy steps, each rank on its share of the
data; then a checkpoint, one more step of both, and the same step again from the checkpoint.
Writes weights and metrics to FOLDER/rank-RANK.npz, named stage/moment/name.
"""

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.shapes.models import new_unet
from learner.collectives import of_first
from learner.diffusion.few_steps import ConsistencyChain
from learner.diffusion.schedule import NoiseSchedule
from learner.engine import Engine, join_ranks, leave_ranks
from learner.exploration import Climb
from learner.group_batch import GroupBatch
from learner.methods.lasro_policy import AnchorData, LasroPolicy
from learner.policy.denoiser import Denoiser
from learner.policy.text import Text
from learner.policy.trainable import make_trainable
from learner.seat import Seat
from learner.settings.lasro import Lasro
from learner.settings.model import Model
from learner.surrogate import new_surrogate
from learner.surrogate_training import RewardMoments, SurrogateTrainer

PROMPTS = ["red circle", "blue star", "green square", "a heart", "two stars", "one square"]
GROUPS, MEMBERS, STEPS = 4, 3, 2
MODEL = Model(path="unused", lora_rank=2, lora_alpha=2, guidance_scale=3.0)
SETTINGS = Lasro.model_validate(
    {
        "surrogate": {"heads": 2, "pessimism": 0.5, "loss": "all_pairs", "regression_weight": 0.1},
        "policy_batch": 4,
        "anchor": {"ratio": 0.5, "batch": 2},
    }
)
SCHEDULE = NoiseSchedule.from_config(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)


def encode(prompts: list[str]) -> Text:
    """Text states of made-up prompts: noise that a prompt always gets again."""
    return Text(
        torch.stack(
            [
                torch.randn(5, 64, generator=torch.Generator().manual_seed(zlib.crc32(p.encode())))
                for p in prompts
            ]
        )
    )


def scored_groups() -> GroupBatch:
    generator = torch.Generator().manual_seed(1)
    rewards = torch.randn(GROUPS, MEMBERS, STEPS, generator=generator)
    # One group has fewer pairs than the others, so that a rank's mean is not the mean of all.
    rewards[1, :2] = 0.0
    latents = torch.randn(GROUPS, MEMBERS, STEPS, 4, 8, 8, generator=generator)
    return GroupBatch(range(GROUPS), PROMPTS[:GROUPS], latents, rewards)


class TinyLearner:
    """A policy with an adapter and a convolutional surrogate, each under its engine."""

    def __init__(self, rank: int, ranks: int, stage: int) -> None:
        torch.manual_seed(0)
        teacher = new_unet().requires_grad_(False)
        unet = new_unet(time_cond_proj_dim=8)
        trained = make_trainable(unet, "lora", rank=2, alpha=2, targets="attention", seed=3)
        surrogate = new_surrogate("conv", teacher, num_steps=2, heads=2, timestep=0, seed=4)
        options: dict[str, Any] = {
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "zero_stage": stage,
            "grad_clip": 1.0,
            "rows_per_rank": 1,
        }
        self.engines = {
            "policy": Engine(Denoiser(unet), trained, **options),
            "surrogate": Engine(surrogate, surrogate.parameters(), **options),
        }
        self.surrogate = SurrogateTrainer(SETTINGS.surrogate, self.engines["surrogate"], encode)
        everything = scored_groups()
        self.surrogate.moments = RewardMoments.of(everything.rewards_GNK)
        self._batch = everything[rank::ranks]
        self.policy = LasroPolicy(
            SETTINGS,
            MODEL,
            self.engines["policy"],
            ConsistencyChain(SCHEDULE, MODEL.num_steps),
            (4, 8, 8),
            encode,
            Denoiser(teacher),
            Climb(self.engines["surrogate"].module, SETTINGS.surrogate),
            Seat(5, rank, ranks),
        )
        generator = torch.Generator().manual_seed(6)
        self._anchor = AnchorData(torch.randn(6, 4, 8, 8, generator=generator), PROMPTS)

    def step(self) -> dict[str, float]:
        return self.surrogate.step(self._batch) | self.policy.step(PROMPTS, self._anchor)

    def weights(self) -> dict[str, np.ndarray]:
        return {
            f"{part}.{name}": p.detach().numpy().copy()
            for part, engine in self.engines.items()
            for name, p in engine.module.named_parameters()
            if p.requires_grad
        }

    def save(self, folder: Path) -> None:
        for part, engine in self.engines.items():
            engine.save(folder / part, {})

    def load(self, folder: Path) -> None:
        for part, engine in self.engines.items():
            engine.load(folder / part)


def story(rank: int, ranks: int, stage: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What the learner is at each moment: moment -> name -> value."""
    learner = TinyLearner(rank, ranks, stage)
    at = {"start": learner.weights()}
    learner.step()
    metrics = learner.step()
    at["trained"] = learner.weights()
    learner.save(folder)
    state = learner.policy.state
    learner.step()
    at["straight"] = learner.weights()
    again = TinyLearner(rank, ranks, stage)
    again.load(folder)
    again.policy.state = state
    at["loaded"] = again.weights()
    again.step()
    at["resumed"] = again.weights()
    return {**at, "metrics": metrics}


def main() -> None:
    rank, ranks, port = (int(word) for word in sys.argv[1:4])
    folder = Path(sys.argv[5])
    torch.set_num_threads(1)
    join_ranks(rank, ranks, "127.0.0.1", port, timeout_s=120)
    assert of_first(7 + rank) == 7
    told = {
        f"{stage}/{moment}/{name}": value
        for stage in sys.argv[4].split(",")
        for moment, values in story(rank, ranks, int(stage), folder / stage).items()
        for name, value in values.items()
    }
    leave_ranks()
    np.savez(folder / f"rank-{rank}.npz", **told)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
