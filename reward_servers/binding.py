"""Attribute binding of shapes scenes: does the picture show what the prompt asks for?

Non-differentiable, deterministic and known to be right, so the over-optimisation of anything
that imitates it can be measured. See `segmentation` for what counts as a thing.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import permutations

import numpy as np

from reward_servers.base import Scored
from reward_servers.scene import DIRECTIONS, SHAPES, Scene, Thing, parse
from reward_servers.segmentation import Seen, look

# Pixels between the centres of things in relation; drawn scenes have at least 8.
_HOLDS_FROM, _CLEAR_FROM = 5.0, 8.0
_SPECK_AREA = 32  # pixels; a surplus thing smaller than the smallest thing counts partly


class ShapesExact:
    """1.0 if the picture shows exactly the things that the prompt asks for, else 0.0."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        """See `is_exact`; a prompt outside the grammar fails its row."""
        return _judge(images_BHWC, prompts, lambda scene, seen: float(is_exact(scene, seen)))


class ShapesBinding:
    """In [0, 1]: how nearly the picture shows what the prompt asks for."""

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> Scored:
        """See `grade`; a prompt outside the grammar fails its row."""
        return _judge(images_BHWC, prompts, grade)


def is_exact(scene: Scene, seen: Sequence[Seen]) -> bool:
    """True iff exactly the scene's things are seen and all its relations hold.

    A relation holds when the centres are at least 5 px apart in its direction.
    """
    found = {Thing(s.colour, s.shape): s for s in seen if s.colour and s.shape}
    if len(seen) != len(scene.things) or set(found) != set(scene.things):
        return False
    placed = [found[thing] for thing in scene.things]
    return all(
        _apart(placed[i], placed[j], direction) >= _HOLDS_FROM
        for i, j, direction in scene.constraints
    )


def grade(scene: Scene, seen: Sequence[Seen]) -> float:
    """Partial credit in [0, 1] that ranks imperfect pictures; 1 for a drawn scene.

    With falloff(d, scale) = 1 / (1 + (d / scale)²), which still tells bad from worse:

        grade    = sum over the T things of (likeness · relation · (1 - double)) / (T + surplus)
        likeness = colour · shape, of the thing and the seen thing that stands for it
        colour   = falloff(max(0, off - 20), 40), off: see `Seen.off`
        shape    = min(1, overlap / 0.85) · falloff(max(0, other + 0.03 - overlap), 0.05)
                   other: the largest overlap with a shape that was not asked for
        relation = mean over the thing's constraints of 0.25 + 0.75 · falloff(max(0, 8 - apart), 5)
                   apart: pixels between the centres in the asked direction;
                   0.25 if the partner is missing
        double   = the largest likeness to this thing of a seen thing that stands for none
        surplus  = sum over the seen things that stand for none of min(1, area / 32)

    A missing thing counts 0. Seen things stand for the asked ones so that the grade is largest.
    """
    likeness = [[_likeness(thing, each) for each in seen] for thing in scene.things]
    spots: list[int | None] = list(range(len(seen)))
    spots += [None] * (len(scene.things) - len(seen))
    return max(
        _grade_of(scene, seen, likeness, chosen)
        for chosen in permutations(spots, len(scene.things))
    )


def _grade_of(
    scene: Scene,
    seen: Sequence[Seen],
    likeness: list[list[float]],
    chosen: tuple[int | None, ...],
) -> float:
    rest = [k for k in range(len(seen)) if k not in chosen]
    total = 0.0
    for thing, spot in enumerate(chosen):
        if spot is not None:
            double = max((likeness[thing][k] for k in rest), default=0.0)
            total += likeness[thing][spot] * _related(scene, seen, chosen, thing) * (1 - double)
    surplus = sum(min(1.0, seen[k].area / _SPECK_AREA) for k in rest)
    return total / (len(chosen) + surplus)


def _related(
    scene: Scene, seen: Sequence[Seen], chosen: tuple[int | None, ...], thing: int
) -> float:
    shares = []
    for i, j, direction in scene.constraints:
        first, second = chosen[i], chosen[j]
        if thing not in (i, j):
            continue
        if first is None or second is None:
            shares.append(0.25)
        else:
            short = max(0.0, _CLEAR_FROM - _apart(seen[first], seen[second], direction))
            shares.append(0.25 + 0.75 * _falloff(short, 5.0))
    return sum(shares) / len(shares)


def _likeness(thing: Thing, seen: Seen) -> float:
    colour = _falloff(max(0.0, seen.off(thing.colour) - 20.0), 40.0)
    asked = SHAPES.index(thing.shape)
    overlap = seen.overlaps[asked]
    other = max(o for shape, o in enumerate(seen.overlaps) if shape != asked)
    shape = min(1.0, overlap / 0.85) * _falloff(max(0.0, other + 0.03 - overlap), 0.05)
    return colour * shape


def _falloff(distance: float, scale: float) -> float:
    return 1.0 / (1.0 + (distance / scale) ** 2)


def _apart(first: Seen, second: Seen, direction: str) -> float:
    ux, uy = DIRECTIONS[direction]
    return ux * (first.x - second.x) + uy * (first.y - second.y)


_scene_of = lru_cache(maxsize=4096)(parse)


def _judge(
    images_BHWC: np.ndarray,
    prompts: Sequence[str],
    verdict: Callable[[Scene, Sequence[Seen]], float],
) -> Scored:
    values, failures = np.zeros(len(prompts), dtype=np.float32), {}
    for row, (prompt, seen) in enumerate(zip(prompts, look(images_BHWC), strict=True)):
        try:
            values[row] = verdict(_scene_of(prompt), seen)
        except ValueError as error:
            failures[row] = str(error)
    return Scored(values, failures)
