"""Proves the verifier of the shapes world against scenes whose truth is known.

    python -m deploy.shapes.verify [--scenes 5000] [--seed 0]

draws scenes, half of them with held-out combinations and half with three things, and judges
each picture as drawn, under a 3x3 blur, under noise of ±12 and under both. Prints one line for
every picture that the verifier calls wrong and then one JSON line: the share called exact and
the mean binding grade of every condition.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

from deploy.shapes.world import draw_scene, render
from reward_servers.binding import grade, is_exact
from reward_servers.scene import Scene
from reward_servers.segmentation import look

_CHUNK = 64  # pictures judged at once


def blurred(images_BHWC: np.ndarray) -> np.ndarray:
    """Every pixel the mean of its 3x3 neighbourhood, within its picture and channel."""
    mean = ndimage.uniform_filter(images_BHWC.astype(np.float32), 3, axes=(1, 2))
    return np.rint(mean).astype(np.uint8)


def noisy(images_BHWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every value off by up to 12."""
    noise = rng.integers(-12, 13, images_BHWC.shape)
    return np.clip(images_BHWC + noise, 0, 255).astype(np.uint8)


def drawn(count: int, rng: np.random.Generator) -> Iterator[tuple[list[Scene], np.ndarray]]:
    """Scenes and their pictures, chunk by chunk."""
    for first in range(0, count, _CHUNK):
        numbers = range(first, min(count, first + _CHUNK))
        scenes = [draw_scene(rng, held_out=number % 2 == 0) for number in numbers]
        yield scenes, np.stack([render(scene, rng) for scene in scenes])


def verify(count: int, seed: int, report: Callable[[str], object]) -> dict[str, object]:
    """Judges drawn scenes; `report` gets a line for each error."""
    rng = np.random.default_rng(seed)
    conditions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "sharp": lambda images: images,
        "blurred": blurred,
        "noisy": lambda images: noisy(images, rng),
        "blurred_noisy": lambda images: noisy(blurred(images), rng),
    }
    exact = dict.fromkeys(conditions, 0)
    grades = dict.fromkeys(conditions, 0.0)
    for scenes, images_BHWC in drawn(count, rng):
        for name, change in conditions.items():
            for scene, seen in zip(scenes, look(change(images_BHWC)), strict=True):
                grades[name] += grade(scene, seen)
                if is_exact(scene, seen):
                    exact[name] += 1
                else:
                    report(f"{name}: {scene.prompt}: saw {', '.join(map(str, seen))}\n")
    return {
        "scenes": count,
        "exact": {name: round(right / count, 5) for name, right in exact.items()},
        "grade": {name: round(total / count, 4) for name, total in grades.items()},
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.shapes.verify")
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    figures = verify(args.scenes, args.seed, sys.stdout.write)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
