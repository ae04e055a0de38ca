"""The shapes verifier against pictures whose truth is known, right ones and wrong ones."""

from collections.abc import Callable

import numpy as np
import pytest

from deploy.shapes.verify import blurred, noisy, verify
from deploy.shapes.world import draw_scene, lay_out
from reward_servers.base import Scored
from reward_servers.binding import ShapesBinding, ShapesExact, grade, is_exact
from reward_servers.scene import BACKGROUND, COLOURS, SHAPES, Scene, Thing, parse, silhouette
from reward_servers.segmentation import Seen, look

Placed = list[tuple[Thing, np.ndarray]]
PROMPT = "a red circle left of a blue square"
TRIO = "a red circle above a blue square and a green cross right"


def paint(placed: Placed) -> np.ndarray:
    y, x = np.mgrid[0:32, 0:32].astype(np.float64)
    image = np.full((32, 32, 3), BACKGROUND, dtype=np.float64)
    for thing, (cx, cy, radius) in placed:
        alpha = silhouette(thing.shape, x - cx, y - cy, radius)[:, :, None]
        image = alpha * np.array(COLOURS[thing.colour]) + (1 - alpha) * image
    return np.rint(image).astype(np.uint8)


def placed(scene: Scene, seed: int = 0) -> Placed:
    places = lay_out(scene, np.random.default_rng(seed))
    return list(zip(scene.things, places, strict=True))


def see(image: np.ndarray) -> list[Seen]:
    return look(image[None])[0]


def exact_of(scene: Scene, image: np.ndarray) -> bool:
    return is_exact(scene, see(image))


def grade_of(scene: Scene, image: np.ndarray) -> float:
    return grade(scene, see(image))


def recoloured(things: Placed) -> Placed:
    (thing, place), *rest = things
    taken = {other.colour for other, _ in things}
    colour = next(name for name in COLOURS if name not in taken)
    return [(Thing(colour, thing.shape), place), *rest]


def reshaped(things: Placed) -> Placed:
    (thing, place), *rest = things
    shape = SHAPES[(SHAPES.index(thing.shape) + 1) % len(SHAPES)]
    return [(Thing(thing.colour, shape), place), *rest]


def swapped(things: Placed) -> Placed:
    (first, here), (second, there), *rest = things
    return [(first, there), (second, here), *rest]


def crossed_colours(things: Placed) -> Placed:
    (first, here), (second, there), *rest = things
    crossed = (Thing(second.colour, first.shape), Thing(first.colour, second.shape))
    return [(crossed[0], here), (crossed[1], there), *rest]


def missing(things: Placed) -> Placed:
    return things[1:]


def free_place(things: Placed) -> np.ndarray:
    corners = [np.array([x, y, 4.2]) for x in (5, 27) for y in (5, 27)]
    return max(corners, key=lambda c: min(np.hypot(*(c - place)[:2]) for _, place in things))


def doubled(things: Placed) -> Placed:
    return [*things, (things[0][0], free_place(things))]


def joined_by_another(things: Placed) -> Placed:
    return [*things, (Thing("purple", "cross"), free_place(things))]


def nothing(things: Placed) -> Placed:
    return []


ERRORS = (
    recoloured,
    reshaped,
    swapped,
    crossed_colours,
    missing,
    doubled,
    joined_by_another,
    nothing,
)


def scenes(count: int, *, three: float) -> list[Scene]:
    """Whose first two colours differ, so that every error makes another scene."""
    rng, found = np.random.default_rng(7), []
    while len(found) < count:
        scene = draw_scene(rng, held_out=len(found) % 2 == 0, three=three)
        if scene.things[0].colour != scene.things[1].colour:
            found.append(scene)
    return found


def test_every_drawn_scene_is_exact_sharp_blurred_and_noisy() -> None:
    errors: list[str] = []
    figures = verify(200, 11, errors.append)
    assert figures["exact"] == dict.fromkeys(("sharp", "blurred", "noisy", "blurred_noisy"), 1.0), (
        errors
    )


def test_an_exact_picture_grades_one() -> None:
    grades = [grade_of(scene, paint(placed(scene))) for scene in scenes(40, three=0.5)]
    np.testing.assert_allclose(grades, 1.0, atol=0.01)


# Three drawn things leave a fourth no room that does not touch one of them.
@pytest.mark.parametrize("error", ERRORS)
def test_two_things_with_an_error_are_not_exact(error: Callable[[Placed], Placed]) -> None:
    wrong = [(s, paint(error(placed(s, i)))) for i, s in enumerate(scenes(60, three=0.0))]
    assert not any(exact_of(scene, image) for scene, image in wrong)


@pytest.mark.parametrize("error", [e for e in ERRORS if e not in (doubled, joined_by_another)])
def test_three_things_with_an_error_are_not_exact(error: Callable[[Placed], Placed]) -> None:
    wrong = [(s, paint(error(placed(s, i)))) for i, s in enumerate(scenes(60, three=1.0))]
    assert not any(exact_of(scene, image) for scene, image in wrong)


@pytest.mark.parametrize("three", [0.0, 1.0])
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_grades_below_the_truth_when_both_are_blurred_and_noisy(
    error: Callable[[Placed], Placed], three: float
) -> None:
    rng = np.random.default_rng(3)
    for seed, scene in enumerate(scenes(30, three=three)):
        truth = placed(scene, seed)
        right, wrong = (
            grade_of(scene, noisy(blurred(paint(things)[None]), rng)[0])
            for things in (truth, error(truth))
        )
        assert wrong < right - 0.1, scene.prompt


def test_the_more_of_a_scene_is_there_the_higher_its_grade() -> None:
    scene = parse(TRIO)
    things = placed(scene)
    grades = [grade_of(scene, paint(things[:count])) for count in range(4)]
    assert grades == sorted(grades)
    assert grades[0] == 0.0


def test_the_grade_falls_as_a_colour_moves_away_from_the_asked_one() -> None:
    scene = parse(PROMPT)
    image = paint(placed(scene)).astype(np.float64)
    red = np.array(COLOURS["red"])
    mask = np.abs(image - red).sum(axis=2) < 40
    grades = []
    for share in np.linspace(0, 1, 9):
        changed = image.copy()
        changed[mask] = (1 - share) * red + share * np.array(COLOURS["yellow"])
        grades.append(grade_of(scene, np.rint(changed).astype(np.uint8)))
    assert grades == sorted(grades, reverse=True)


def test_the_grade_falls_as_a_thing_moves_to_the_wrong_side() -> None:
    scene = parse(PROMPT)
    square = (scene.things[1], np.array([16.0, 25.0, 4.5]))
    grades = [
        grade_of(scene, paint([(scene.things[0], np.array([x, 8.0, 4.5])), square]))
        for x in (6.0, 10.0, 14.0, 18.0, 22.0, 26.0)
    ]
    assert grades == sorted(grades, reverse=True)
    assert grades[0] > 2 * grades[-1]


def test_a_relation_of_touching_columns_does_not_hold() -> None:
    scene = parse(PROMPT)
    places = (np.array([14.0, 8.0, 4.5]), np.array([18.0, 25.0, 4.5]))
    assert not exact_of(scene, paint(list(zip(scene.things, places, strict=True))))


def test_half_red_and_half_blue_is_not_purple() -> None:
    scene = parse("a purple circle left of a white square")
    image = paint([(Thing("red", scene.things[0].shape), placed(scene)[0][1]), placed(scene)[1]])
    middle = round(float(placed(scene)[0][1][1]))
    top = image[:middle]
    top[np.abs(top - np.array(COLOURS["red"])).sum(axis=2) < 40] = COLOURS["blue"]
    assert {each.colour for each in see(image)} == {None, "white"}


def test_grey_is_no_colour() -> None:
    image = paint(placed(parse(PROMPT)))
    image[(image != np.array(BACKGROUND)).any(axis=2)] = (130, 130, 130)
    assert {each.colour for each in see(image)} == {None}


def test_specks_are_overlooked() -> None:
    image = paint(placed(parse(PROMPT)))
    image[0, :4] = image[31, :4] = 255
    assert exact_of(parse(PROMPT), image)


def test_a_picture_of_noise_is_not_exact_and_grades_low() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert grade_of(parse(PROMPT), image) < 0.2


def test_centres_are_found_within_a_third_of_a_pixel() -> None:
    for seed, scene in enumerate(scenes(20, three=0.0)):
        things = placed(scene, seed)
        found = see(paint(things))
        for _, (x, y, _) in things:
            assert min(np.hypot(each.x - x, each.y - y) for each in found) < 1 / 3


def test_things_at_the_edge_are_seen() -> None:
    scene = parse(PROMPT)
    things = [
        (thing, np.array([x, 4.0, 4.4])) for thing, x in zip(scene.things, (4, 27), strict=True)
    ]
    assert exact_of(scene, paint(things))


@pytest.mark.parametrize("reward", [ShapesExact(), ShapesBinding()])
def test_a_prompt_outside_the_grammar_fails_its_row_only(
    reward: ShapesExact | ShapesBinding,
) -> None:
    image = paint(placed(parse(PROMPT)))
    scored = reward.score(np.stack([image] * 3), [PROMPT, "a photo of a dog", PROMPT])
    assert isinstance(scored, Scored)
    assert list(scored.failures) == [1]
    assert scored.values[[0, 2]] == pytest.approx(1.0, abs=0.01)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, 32, 32, 3\], not uint8 \[1, 64, 64, 3\]"):
        look(np.zeros((1, 64, 64, 3), dtype=np.uint8))
