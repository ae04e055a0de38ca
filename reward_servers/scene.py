"""The language and geometry of shapes scenes: what a prompt asks for, how a thing looks.

A scene is two or three coloured things and how they stand to each other. Its prompt is

    a red circle left of a blue square
    a red circle above a blue square and a green cross right

where the first relation binds the first two things and the trailing word places the third
beside both of them. `parse` and `Scene.prompt` are exact inverses.
Coordinates are pixels, x to the right and y down.
"""

import re
from dataclasses import dataclass

import numpy as np

IMAGE_SIZE = 32
BACKGROUND = (24, 24, 28)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "green": (45, 170, 60),
    "blue": (50, 80, 235),
    "yellow": (245, 225, 50),
    "purple": (165, 50, 210),
    "cyan": (60, 215, 230),
    "orange": (250, 135, 20),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "bar", "ring")
RELATIONS = ("left of", "right of", "above", "below")
# The unit vector from the second thing to the first.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}

_THING = r"an? (\w+) (\w+)"
_PROMPT = re.compile(rf"{_THING} (left of|right of|above|below) {_THING}(?: and {_THING} (\w+))?")


@dataclass(frozen=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two things and their relation, and perhaps a third beside both.

    Args:
        things: two or three different things.
        relation: one of `RELATIONS`: the first thing is `relation` the second.
        side: where the third thing stands seen from both others; across the relation's axis.
    """

    things: tuple[Thing, ...]
    relation: str
    side: str | None = None

    @property
    def prompt(self) -> str:
        """The text that `parse` makes this scene of."""
        first, second, *third = self.things
        text = f"{first} {self.relation} {second}"
        return f"{text} and {third[0]} {self.side}" if third else text

    @property
    def constraints(self) -> tuple[tuple[int, int, str], ...]:
        """(i, j, direction): thing i stands in that direction from thing j."""
        pairs = ((0, 1, self.relation.split()[0]),)
        if self.side is None:
            return pairs
        return (*pairs, (2, 0, self.side), (2, 1, self.side))


def sides_across(relation: str) -> tuple[str, str]:
    """The two places of a third thing: across the axis of the first two."""
    return ("above", "below") if relation in ("left of", "right of") else ("left", "right")


def parse(prompt: str) -> Scene:
    """The scene that a prompt asks for.

    Raises:
        ValueError: the prompt is not of this grammar; says what it expected.
    """
    match = _PROMPT.fullmatch(prompt.strip())
    if match is None:
        raise ValueError(
            f"not a shapes prompt: {prompt!r}; expected 'a <colour> <shape> "
            "<left of|right of|above|below> a <colour> <shape>[ and a <colour> <shape> <side>]'"
        )
    c1, s1, relation, c2, s2, c3, s3, side = match.groups()
    things = tuple(Thing(c, s) for c, s in ((c1, s1), (c2, s2), (c3, s3)) if c is not None)
    for thing in things:
        if thing.colour not in COLOURS or thing.shape not in SHAPES:
            raise ValueError(
                f"unknown thing '{thing}' in {prompt!r}; colours are "
                f"{', '.join(COLOURS)}; shapes are {', '.join(SHAPES)}"
            )
    if len(set(things)) < len(things):
        raise ValueError(f"the things of a scene must differ: {prompt!r}")
    if side is not None and side not in sides_across(relation):
        raise ValueError(
            f"the third thing of {prompt!r} stands {side!r}; after {relation!r} it must stand "
            f"{' or '.join(sides_across(relation))}"
        )
    return Scene(things, relation, side)


def silhouette(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Antialiased coverage in [0, 1] of a shape at offsets (dx, dy) from its centre, in pixels.

    Shapes of one radius cover about the same area. Arguments broadcast.
    """
    if shape == "circle":
        outside = np.hypot(dx, dy) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(dx), np.abs(dy)) - 0.88 * radius
    elif shape == "triangle":
        inradius = 0.66 * radius
        # The centroid sits below the middle of the bounding box, by half an inradius.
        low = dy - 0.5 * inradius
        slope = 0.8660254 * np.abs(dx) - 0.5 * low
        outside = np.maximum(low, slope) - inradius
    elif shape == "cross":
        long, wide = 1.1 * radius, 0.4 * radius
        ax, ay = np.abs(dx), np.abs(dy)
        outside = np.minimum(np.maximum(ax - long, ay - wide), np.maximum(ax - wide, ay - long))
    elif shape == "bar":
        outside = np.maximum(np.abs(dx) - 1.3 * radius, np.abs(dy) - 0.6 * radius)
    elif shape == "ring":
        outside = np.abs(np.hypot(dx, dy) - 0.76 * radius) - 0.36 * radius
    else:
        raise ValueError(f"unknown shape {shape!r}; shapes are {', '.join(SHAPES)}")
    return np.clip(0.5 - outside, 0.0, 1.0).astype(np.float32)
