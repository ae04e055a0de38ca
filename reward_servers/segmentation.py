"""What a shapes picture shows: its things, their colours, shapes and places.

Deterministic and without learned parts: segment against the world's background, take every
thing's colour from its solid pixels, fit silhouettes to its coverage. Pictures may be a little
blurred or noisy, as an autoencoder leaves them. What stays below about half of a palette
colour's brightness is background, so the ground itself is not judged.
Knows nothing of prompts.

Shape suffixes: B images, H W pixels, K seen things of all images, P window pixels,
N templates, S shapes.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy import ndimage

from reward_servers.scene import BACKGROUND, COLOURS, IMAGE_SIZE, SHAPES, silhouette

_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_GROUND = np.array(BACKGROUND, dtype=np.float32)
# Share of a palette colour over the ground from which a pixel belongs to a thing.
_FOREGROUND = 0.45
_MIN_AREA = 7  # pixels; a fifth of the smallest thing. Less is a speck.
_MAX_SEEN = 6  # a picture with more has been ruined; the largest are kept
_IN_PLANE = np.array([[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3])
_HALF = 8  # fitting windows reach so far from their middle pixel
_RADII = tuple(np.arange(2.8, 5.1, 0.3).tolist())  # pixels; drawn things have 3.4 to 4.4
# Beyond these a thing has no colour (grey, brown) or no shape (a smear).
_MAX_OFF = 80.0
_MIN_OVERLAP = 0.75


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture.

    Args:
        rgb: mean colour of its solid pixels.
        spread: their standard deviation in RGB; large for a thing of several colours.
        overlaps: soft intersection over union with the best silhouette of every shape.
        x, y: centre of the best silhouette, in pixels.
        area: pixels.
    """

    rgb: tuple[float, float, float]
    spread: float
    overlaps: tuple[float, ...]
    x: float
    y: float
    area: int

    @property
    def colour(self) -> str | None:
        """The nearest palette colour; None when none is near."""
        nearest = min(COLOURS, key=self.off)
        return nearest if self.off(nearest) <= _MAX_OFF else None

    def off(self, colour: str) -> float:
        """Root mean square distance of its solid pixels from a palette colour, in RGB."""
        return math.hypot(math.dist(self.rgb, COLOURS[colour]), self.spread)

    @property
    def shape(self) -> str | None:
        """The best-fitting shape; None when none fits."""
        best = max(self.overlaps)
        return SHAPES[self.overlaps.index(best)] if best >= _MIN_OVERLAP else None

    def __str__(self) -> str:
        return f"{self.colour} {self.shape} at ({self.x:.1f}, {self.y:.1f})"


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
    share_BHW = _palette_share(above_BHWC)
    labels_BHW, picture_K, area_K = _segments(share_BHW > _FOREGROUND)
    found: list[list[Seen]] = [[] for _ in images_BHWC]
    if len(area_K) == 0:
        return found
    rgb_K3, spread_K = _solid_colours(labels_BHW, above_BHWC, share_BHW, len(area_K))
    overlaps_KS, centres_K2 = _fits(labels_BHW, above_BHWC, rgb_K3, picture_K)
    columns = (rgb_K3 + _GROUND, spread_K, overlaps_KS, centres_K2, area_K)
    things = zip(*(column.tolist() for column in columns), strict=True)
    for picture, (rgb, spread, overlaps, (x, y), area) in zip(
        picture_K.tolist(), things, strict=True
    ):
        found[picture].append(Seen(tuple(rgb), spread, tuple(overlaps), x, y, area))
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
    labels_BHW = np.zeros(mask_BHW.shape, dtype=np.int32)
    count = int(ndimage.label(mask_BHW, structure=_IN_PLANE, output=labels_BHW))  # type: ignore[arg-type]
    area = np.bincount(labels_BHW.ravel(), minlength=count + 1)
    picture = np.zeros(count + 1, dtype=np.intp)
    picture[labels_BHW.reshape(-1, IMAGE_SIZE**2)] = np.arange(len(mask_BHW))[:, None]
    kept = 1 + np.flatnonzero(area[1:] >= _MIN_AREA)
    kept = kept[np.lexsort((-area[kept], picture[kept]))]
    rank = np.arange(len(kept)) - np.searchsorted(picture[kept], picture[kept])
    kept = kept[rank < _MAX_SEEN]
    renamed = np.zeros(count + 1, dtype=np.int32)
    renamed[kept] = 1 + np.arange(len(kept))
    return renamed[labels_BHW], picture[kept], area[kept]


def _solid_colours(
    labels_BHW: np.ndarray, above_BHWC: np.ndarray, share_BHW: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour above the ground [K, 3] and its spread [K], from each thing's solid pixels."""
    padded = np.pad(labels_BHW, ((0, 0), (1, 1), (1, 1)))
    inner = labels_BHW > 0
    across, down = padded[:, 1:-1], padded[:, :, 1:-1]
    for shifted in (down[:, 2:], down[:, :-2], across[:, :, 2:], across[:, :, :-2]):
        inner &= shifted == labels_BHW
    # The small weight serves a thing that is too thin to have inner pixels; the power leaves
    # out those that a blur has mixed with the ground.
    weight = (np.where(inner, 1.0, 1e-4) * share_BHW**8).ravel()
    flat, pixels = labels_BHW.ravel(), above_BHWC.reshape(-1, 3)
    total = np.bincount(flat, weight, minlength=count + 1)
    columns = (*pixels.T, (pixels**2).sum(axis=1))
    sums = [np.bincount(flat, weight * column, minlength=count + 1) for column in columns]
    means = np.stack(sums, axis=1)[1:] / total[1:, None]
    rgb_K3 = means[:, :3].astype(np.float32)
    spread_K = np.sqrt(np.maximum(means[:, 3] - (means[:, :3] ** 2).sum(axis=1), 0.0))
    return rgb_K3, spread_K


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
    common_KN = windows_KP @ bank.templates
    overlap_KN = common_KN / (squares_K[:, None] + bank.squares - common_KN)
    overlaps_KS = overlap_KN.reshape(len(rgb_K3), len(SHAPES), -1).max(axis=2)
    best_K = overlap_KN.argmax(axis=1)
    return overlaps_KS, anchor_K2 + bank.centres[best_K]


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

    templates: np.ndarray  # [P, N]
    squares: np.ndarray  # [N], the templates' sums of squares
    centres: np.ndarray  # [N, 2], x and y relative to the middle pixel


@lru_cache(maxsize=1)
def _bank() -> _Bank:
    y, x = np.mgrid[-_HALF : _HALF + 1, -_HALF : _HALF + 1].astype(np.float64)
    phases = (-0.375, -0.125, 0.125, 0.375)
    templates, centres = [], []
    for shape in SHAPES:
        for radius in _RADII:
            # Anchors are centroids; a triangle's lies below its centre.
            low = 0.33 * radius if shape == "triangle" else 0.0
            for py, px in product(phases, phases):
                sharp = silhouette(shape, x - px, y - py + low, np.array(radius))
                templates += [sharp, ndimage.uniform_filter(sharp, 3)]
                centres += [(px, py - low)] * 2
    flat = np.stack(templates).reshape(len(templates), -1)
    return _Bank(np.ascontiguousarray(flat.T), (flat**2).sum(axis=1), np.array(centres))
