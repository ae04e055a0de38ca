"""Attribute binding of shapes scenes: does the picture show what the prompt asks for?

A deterministic verifier without learned parts. `look` segments a picture against the world's
background and says of every thing what colour and shape it has and where it stands; `grade`
and `is_exact` compare that with the scene of the prompt. Pictures may be a little blurred or
noisy, as an autoencoder leaves them. What stays below about half of a thing's brightness
counts as background, so the ground itself is not judged.

Shape suffixes: B images, H W pixels, K seen things of all images, P window pixels,
N templates, S shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

import numpy as np
from scipy import ndimage

from reward_servers.base import Scored
from reward_servers.scene import (
    BACKGROUND,
    COLOURS,
    DIRECTIONS,
    IMAGE_SIZE,
    SHAPES,
    Scene,
    Thing,
    parse,
    silhouette,
)

_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_GROUND = np.array(BACKGROUND, dtype=np.float32)
# Share of a palette colour over the ground from which a pixel belongs to a thing.
_FOREGROUND = 0.45
_MIN_AREA = 8  # pixels; a fifth of the smallest thing. Less is a speck.
_MAX_SEEN = 6  # a picture with more has been ruined; the largest are kept
_IN_PLANE = np.zeros((3, 3, 3), dtype=bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
_HALF = 8  # windows of fitting reach so far from their middle pixel

# Beyond these a thing has no colour (grey, brown) or no shape (a smear).
_MAX_COLOUR_DISTANCE = 80.0
_MIN_OVERLAP = 0.75
# Centres of things in relation are at least 13 px apart along it in drawn scenes.
_HOLDS_FROM, _CLEAR_FROM = 5.0, 9.0


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture.

    Args:
        rgb: its colour, from its solid pixels.
        overlaps: soft intersection over union with the best silhouette of every shape.
        x, y: centre of the best silhouette, in pixels.
        area: pixels.
    """

    rgb: tuple[float, float, float]
    overlaps: tuple[float, ...]
    x: float
    y: float
    area: int

    @property
    def colour(self) -> str | None:
        """The nearest palette colour; None when none is near."""
        distances = {name: _distance(self.rgb, COLOURS[name]) for name in COLOURS}
        nearest = min(distances, key=distances.__getitem__)
        return nearest if distances[nearest] <= _MAX_COLOUR_DISTANCE else None

    @property
    def shape(self) -> str | None:
        """The best-fitting shape; None when none fits."""
        best = max(self.overlaps)
        return SHAPES[self.overlaps.index(best)] if best >= _MIN_OVERLAP else None

    def __str__(self) -> str:
        return f"{self.colour} {self.shape} at ({self.x:.1f}, {self.y:.1f})"


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

        grade    = T / (T + surplus) · mean over the T things of  likeness · relation · (1 - double)
        likeness = colour · shape, of the thing and the seen thing that stands for it
        colour   = falloff(max(0, |rgb - asked rgb| - 16), 40)
        shape    = min(1, overlap / 0.85) · falloff(max(0, best other overlap + 0.03 - overlap), 0.05)
        relation = mean over the thing's constraints of 0.25 + 0.75 · falloff(max(0, 9 - apart), 5),
                   apart: px between the centres in the asked direction; 0.25 if the partner is missing
        double   = the largest likeness of a seen thing that stands for none
        surplus  = seen things that stand for none, each counting min(1, area / 40)

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
    surplus = sum(min(1.0, seen[k].area / 40) for k in rest)
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
    distance = _distance(seen.rgb, COLOURS[thing.colour])
    asked = SHAPES.index(thing.shape)
    overlap = seen.overlaps[asked]
    other = max(o for shape, o in enumerate(seen.overlaps) if shape != asked)
    shape = min(1.0, overlap / 0.85) * _falloff(max(0.0, other + 0.03 - overlap), 0.05)
    return _falloff(max(0.0, distance - 16.0), 40.0) * shape


def _falloff(distance: float, scale: float) -> float:
    return 1.0 / (1.0 + (distance / scale) ** 2)


def _apart(first: Seen, second: Seen, direction: str) -> float:
    ux, uy = DIRECTIONS[direction]
    return ux * (first.x - second.x) + uy * (first.y - second.y)


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


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


_scene_of = lru_cache(maxsize=4096)(parse)


def look(images_BHWC: np.ndarray) -> list[list[Seen]]:
    """The things of every picture, largest first.

    Args:
        images_BHWC: uint8 [B, 32, 32, 3].
    """
    if images_BHWC.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or images_BHWC.dtype != np.uint8:
        raise ValueError(
            f"shapes pictures are uint8 [B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3], not "
            f"{images_BHWC.dtype} {list(images_BHWC.shape)}"
        )
    above_BHWC = images_BHWC.astype(np.float32) - _GROUND
    labels_BHW, picture_K, area_K = _segments(_palette_share(above_BHWC) > _FOREGROUND)
    rgb_K3 = _solid_colours(labels_BHW, above_BHWC, len(area_K))
    overlaps_KS, centres_K2 = _fits(labels_BHW, above_BHWC, rgb_K3, picture_K)
    found: list[list[Seen]] = [[] for _ in images_BHWC]
    columns = (rgb_K3 + _GROUND, overlaps_KS, centres_K2, area_K, picture_K)
    for rgb, overlaps, (x, y), area, picture in zip(*(c.tolist() for c in columns), strict=True):
        found[picture].append(Seen(tuple(rgb), tuple(overlaps), x, y, area))
    return found


def _palette_share(above_BHWC: np.ndarray) -> np.ndarray:
    """How much of the palette colour of its direction each pixel has, [B, H, W]."""
    span_C3 = _PALETTE - _GROUND
    length_C = np.linalg.norm(span_C3, axis=1)
    along = above_BHWC @ (span_C3 / length_C[:, None]).T
    best = along.argmax(axis=-1)
    return np.take_along_axis(along, best[..., None], axis=-1)[..., 0] / length_C[best]


def _segments(mask_BHW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels 1..K [B, H, W] of the things, their picture [K] and area [K].

    Ordered by picture and then by falling area.
    """
    labels_BHW, count = ndimage.label(mask_BHW, structure=_IN_PLANE)
    area = np.bincount(labels_BHW.ravel(), minlength=count + 1)
    picture = np.zeros(count + 1, dtype=np.intp)
    picture[labels_BHW.reshape(len(mask_BHW), -1)] = np.arange(len(mask_BHW))[:, None]
    kept = 1 + np.flatnonzero(area[1:] >= _MIN_AREA)
    kept = kept[np.lexsort((-area[kept], picture[kept]))]
    rank = np.arange(len(kept)) - np.searchsorted(picture[kept], picture[kept])
    kept = kept[rank < _MAX_SEEN]
    renamed = np.zeros(count + 1, dtype=np.int32)
    renamed[kept] = 1 + np.arange(len(kept))
    return renamed[labels_BHW], picture[kept], area[kept]


def _solid_colours(labels_BHW: np.ndarray, above_BHWC: np.ndarray, count: int) -> np.ndarray:
    """Mean colour above the ground of each thing's inner pixels, [K, 3]."""
    padded = np.pad(labels_BHW, ((0, 0), (1, 1), (1, 1)))
    inner = labels_BHW > 0
    across, down = padded[:, 1:-1], padded[:, :, 1:-1]
    for shifted in (down[:, 2:], down[:, :-2], across[:, :, 2:], across[:, :, :-2]):
        inner &= shifted == labels_BHW
    # The small weight serves a thing that is too thin to have inner pixels.
    weight = np.where(inner, 1.0, 1e-4).ravel()
    flat, pixels = labels_BHW.ravel(), above_BHWC.reshape(-1, 3)
    total = np.bincount(flat, weight, minlength=count + 1)
    sums = [np.bincount(flat, weight * pixels[:, c], minlength=count + 1) for c in range(3)]
    return (np.stack(sums, axis=1)[1:] / total[1:, None]).astype(np.float32)


def _fits(
    labels_BHW: np.ndarray, above_BHWC: np.ndarray, rgb_K3: np.ndarray, picture_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Overlap with the best silhouette of every shape [K, S] and centre (x, y) of the best."""
    bank = _bank()
    owner_BHW = _with_rim(labels_BHW)
    coverage_BHW = _coverage(owner_BHW, above_BHWC, rgb_K3)
    flat, weights = owner_BHW.ravel(), coverage_BHW.ravel()
    count = len(rgb_K3) + 1
    mass = np.bincount(flat, weights, minlength=count)[1:]
    squares_K = np.bincount(flat, weights**2, minlength=count)[1:]
    y, x = (np.tile(g.ravel(), len(labels_BHW)) for g in np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE])
    middle_K2 = np.stack([np.bincount(flat, weights * g, minlength=count)[1:] for g in (x, y)], 1)
    anchor_K2 = np.rint(middle_K2 / mass[:, None]).astype(np.intp)
    windows_KP = _windows(owner_BHW, coverage_BHW, picture_K, anchor_K2)
    common_KN = windows_KP @ bank.templates_PN
    overlap_KN = common_KN / (squares_K[:, None] + bank.squares_N - common_KN)
    overlaps_KS = overlap_KN.reshape(len(rgb_K3), len(SHAPES), -1).max(axis=2)
    best_K = overlap_KN.argmax(axis=1)
    return overlaps_KS, anchor_K2 + bank.centres_N2[best_K]


def _with_rim(labels_BHW: np.ndarray) -> np.ndarray:
    """Labels that also claim the ground within one pixel: a thing's soft edge."""
    grown = ndimage.grey_dilation(labels_BHW, size=(1, 3, 3))
    return np.where(labels_BHW > 0, labels_BHW, grown)


def _coverage(owner_BHW: np.ndarray, above_BHWC: np.ndarray, rgb_K3: np.ndarray) -> np.ndarray:
    """Share in [0, 1] of each pixel that its owner covers, [B, H, W]."""
    per_square = rgb_K3 / np.maximum((rgb_K3**2).sum(axis=1, keepdims=True), 1.0)
    table = np.concatenate([np.zeros((1, 3), dtype=np.float32), per_square])
    return np.einsum("bhwc,bhwc->bhw", above_BHWC, table[owner_BHW]).clip(0.0, 1.0)


def _windows(
    owner_BHW: np.ndarray, coverage_BHW: np.ndarray, picture_K: np.ndarray, anchor_K2: np.ndarray
) -> np.ndarray:
    """Each thing's own coverage around its anchor, float32 [K, P]."""
    pad = ((0, 0), (_HALF, _HALF), (_HALF, _HALF))
    size = np.arange(2 * _HALF + 1)
    at = (
        picture_K[:, None, None],
        anchor_K2[:, 1, None, None] + size[:, None],
        anchor_K2[:, 0, None, None] + size,
    )
    mine = np.pad(owner_BHW, pad)[at] == 1 + np.arange(len(picture_K))[:, None, None]
    windows = np.where(mine, np.pad(coverage_BHW, pad)[at], 0.0)
    return windows.reshape(len(picture_K), -1).astype(np.float32)


@dataclass(frozen=True)
class _Bank:
    """Silhouettes over shape, radius, sub-pixel place and blur; shapes outermost."""

    templates_PN: np.ndarray
    squares_N: np.ndarray
    centres_N2: np.ndarray


@lru_cache(maxsize=1)
def _bank() -> _Bank:
    y, x = np.mgrid[-_HALF : _HALF + 1, -_HALF : _HALF + 1].astype(np.float64)
    phases = (-0.375, -0.125, 0.125, 0.375)
    templates, centres = [], []
    for shape in SHAPES:
        for radius in np.arange(3.8, 5.7, 0.3):
            # Anchors are centroids; a triangle's lies below its centre.
            low = 0.33 * radius if shape == "triangle" else 0.0
            for py in phases:
                for px in phases:
                    sharp = silhouette(shape, x - px, y - py + low, radius)
                    templates += [sharp, ndimage.uniform_filter(sharp, 3)]
                    centres += [(px, py - low)] * 2
    flat = np.stack(templates).reshape(len(templates), -1)
    return _Bank(np.ascontiguousarray(flat.T), (flat**2).sum(axis=1), np.array(centres))
