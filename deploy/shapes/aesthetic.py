"""Trains the small aesthetic network of the shapes world on few labels.

    python -m deploy.shapes.aesthetic [--labels 400] [--steps 1500] [--seed 0] [--out FILE]

draws so many pictures from the 50-step base without guidance, labels them by the true taste, and
fits the network to nine tenths of them. Prints one JSON line: the correlation with the truth on
the rest, and on rendered scenes, which the base never drew.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.rollout import Group
from deploy.run.policy_build import policy_of
from deploy.settings.prompt_sources import prompt_list
from deploy.settings.run_config import load_config
from deploy.shapes.world import draw_scene, render
from learner.policy.components import PipelineFolder, decode_latents
from reward_servers.aesthetic import WEIGHTS, AestheticNet, ShapesTaste

_PRESET = Path("deploy/configs/shapes-sqdf-aesthetic.yaml")
_BATCH = 64


def base_pictures(count: int, seed: int) -> np.ndarray:
    """Pictures of the untouched policy, uint8 [count, 32, 32, 3]."""
    config = load_config(_PRESET)
    pipeline = PipelineFolder.of(config.model)
    policy, vae = policy_of(config, pipeline, group_size=1, only_clean=True), pipeline.vae()
    prompts = prompt_list(config.prompts, seed)
    parts = []
    for start in range(0, count, _BATCH):
        numbers = range(start, min(count, start + _BATCH))
        groups = [Group(i, prompts[i % len(prompts)], seed * 10**6 + i) for i in numbers]
        latents = np.concatenate([rollout.latents for rollout in policy.sample(groups)])
        parts.append(decode_latents(vae, torch.from_numpy(latents[:, -1]).float()))
    return np.concatenate(parts)


def rendered(count: int, seed: int) -> np.ndarray:
    """Pictures of the world's own renderer."""
    rng = np.random.default_rng(seed)
    return np.stack([render(draw_scene(rng, held_out=False), rng) for _ in range(count)])


def fit(net: AestheticNet, images: Tensor, labels: Tensor, *, steps: int, seed: int) -> None:
    """Least squares, with pictures turned over at random: the taste does not mind."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (_BATCH,), generator=generator)
        axes = [2 + i for i in range(2) if torch.rand((), generator=generator) < 0.5]
        loss = ((net(images[rows].flip(axes)) - labels[rows]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.shapes.aesthetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    pictures = base_pictures(args.labels, args.seed + 1)
    images, labels = _tensor(pictures), _labels(pictures)
    held_out = len(images) // 10
    net = AestheticNet()
    fit(net, images[held_out:], labels[held_out:], steps=args.steps, seed=args.seed)
    other = rendered(1000, args.seed)
    figures = {
        "labels": len(images) - held_out,
        "mean_taste": round(float(labels.mean()), 3),
        "held_out_correlation": _correlation(net, images[:held_out], labels[:held_out]),
        "rendered_correlation": _correlation(net, _tensor(other), _labels(other)),
    }
    save_file(net.state_dict(), args.out)
    sys.stdout.write(json.dumps(figures) + "\n")


def _tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _labels(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(ShapesTaste().score(pictures, [""] * len(pictures)))


@torch.no_grad()
def _correlation(net: AestheticNet, images: Tensor, labels: Tensor) -> float:
    return round(float(torch.corrcoef(torch.stack([net(images), labels]))[0, 1]), 3)


if __name__ == "__main__":
    main()
