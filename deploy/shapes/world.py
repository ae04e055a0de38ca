"""Scenes of the shapes world: which exist, how they are laid out and drawn.

Some colour–shape combinations are held out: no training image or training prompt shows them,
and every evaluation prompt has at least one, so a score there measures composition.
"""

import numpy as np

from reward_servers.scene import (
    BACKGROUND,
    COLOURS,
    DIRECTIONS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    sides_across,
    silhouette,
)

THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)
# One shape of every colour, one or two colours of every shape.
HELD_OUT = frozenset(Thing(colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))
SEEN = tuple(thing for thing in THINGS if thing not in HELD_OUT)
_LOW, _HIGH = 5.5, 26.5
"""Range of a centre, in pixels: a thing stays inside the picture."""
_EXTENT = 1.3
"""Half the longest side of a bounding box, in radii: the bar's."""
_RADII = 3.4, 4.4
_GAP = 1.5
_CLEAR = 8.0
"""Pixels by which a relation holds at least."""
_CANDIDATES = 512


def draw_scene(rng: np.random.Generator, *, held_out: bool, three: float = 0.5) -> Scene:
    """A random scene.

    Args:
        held_out: True: at least one thing is a held-out combination; False: none is.
        three: probability of a third thing.
    """
    count = 3 if rng.random() < three else 2
    pool = THINGS if held_out else SEEN
    while True:
        things = tuple(pool[i] for i in rng.choice(len(pool), size=count, replace=False))
        if not held_out or any(thing in HELD_OUT for thing in things):
            break
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    side = sides_across(relation)[rng.integers(2)] if count == 3 else None
    return Scene(things, relation, side)


def lay_out(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Centres and radii that satisfy the scene with clear gaps, float64 [things, (x, y, r)].

    Uniform over all places that do: a prompt says how things stand to each other, not where. A
    model must choose, and a few-step model that averages over the choices blurs.
    """
    count = len(scene.things)
    while True:
        places = rng.uniform(_LOW, _HIGH, size=(_CANDIDATES, count, 3))
        places[:, :, 2] = rng.uniform(*_RADII, size=(_CANDIDATES, count))
        fits = np.ones(_CANDIDATES, dtype=bool)
        for i in range(count):
            for j in range(i):
                apart = np.abs(places[:, i, :2] - places[:, j, :2]).max(axis=1)
                fits &= apart >= _EXTENT * (places[:, i, 2] + places[:, j, 2]) + _GAP
        for i, j, direction in scene.constraints:
            along = (places[:, i, :2] - places[:, j, :2]) @ np.array(DIRECTIONS[direction])
            fits &= along >= _CLEAR
        if fits.any():
            return places[fits.argmax()]


def cells(scene: Scene) -> list[int]:
    """The cell of a 3x3 grid, counted by rows, in which each thing stands in spirit.

    Things of a pair stand at the two ends of their axis, a third thing across from both.
    """
    along = 0 if scene.relation in ("left of", "right of") else 1
    first_is_near = scene.relation in ("left of", "above")
    grid = np.ones((len(scene.things), 2), dtype=int)
    grid[:2, along] = (0, 2) if first_is_near else (2, 0)
    if scene.side is not None:
        third_is_near = scene.side in ("above", "left")
        grid[:2, 1 - along] = 2 if third_is_near else 0
        grid[2, 1 - along] = 0 if third_is_near else 2
    return [int(3 * y + x) for x, y in grid]


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A picture of the scene, uint8 [32, 32, 3]; colours vary a little."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float64)
    image = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    image[:] = BACKGROUND
    for thing, (cx, cy, radius) in zip(scene.things, lay_out(scene, rng), strict=True):
        colour = np.clip(np.array(COLOURS[thing.colour]) + rng.uniform(-8, 8, size=3), 0, 255)
        alpha = silhouette(thing.shape, x - cx, y - cy, radius)[:, :, None]
        image = alpha * colour + (1 - alpha) * image
    return np.round(image).astype(np.uint8)
