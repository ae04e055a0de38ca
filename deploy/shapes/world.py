"""Scenes of the shapes world: which exist, how they are laid out and drawn.

Some colour–shape combinations are held out: no training image or training prompt shows them,
and every evaluation prompt has at least one, so a score there measures composition.
"""

import numpy as np

from reward_servers.scene import (
    BACKGROUND,
    COLOURS,
    IMAGE_SIZE,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    sides_across,
    silhouette,
)

THINGS = tuple(Thing(colour, shape) for colour in COLOURS for shape in SHAPES)
# One shape of every colour, two colours of every shape.
HELD_OUT = frozenset(Thing(colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))
SEEN = tuple(thing for thing in THINGS if thing not in HELD_OUT)
_NEAR, _FAR, _MIDDLE = 8.5, 23.5, 16.0


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
    """Centres and radii that satisfy the scene with clear gaps, float64 [things, (x, y, r)]."""
    along = 0 if scene.relation in ("left of", "right of") else 1
    first_is_near = scene.relation in ("left of", "above")
    places = np.empty((len(scene.things), 3))
    places[:2, along] = (_NEAR, _FAR) if first_is_near else (_FAR, _NEAR)
    if scene.side is None:
        places[:, 1 - along] = _MIDDLE + rng.uniform(-5, 5, size=2)
    else:
        third_is_near = scene.side in ("above", "left")
        places[:2, 1 - along] = _FAR if third_is_near else _NEAR
        places[2, 1 - along] = _NEAR if third_is_near else _FAR
        places[2, along] = _MIDDLE + rng.uniform(-5, 5)
    places[:, :2] += rng.uniform(-1, 1, size=(len(scene.things), 2))
    places[:, 2] = rng.uniform(4.2, 5.0, size=len(scene.things))
    return places


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
