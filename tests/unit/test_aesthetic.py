"""The taste of the shapes world, and the small network that guesses it."""

import numpy as np
import torch

from deploy.shapes.world import draw_scene, render
from reward_servers.aesthetic import ShapesAesthetic, ShapesTaste
from reward_servers.scene import BACKGROUND, COLOURS, IMAGE_SIZE, silhouette


def scenes(count: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.stack([render(draw_scene(rng, held_out=False), rng) for _ in range(count)])


def circle(radius: float) -> np.ndarray:
    """A picture of one red circle, uint8 [1, 32, 32, 3]."""
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float64)
    alpha = silhouette("circle", x - 16, y - 16, np.float64(radius))[:, :, None]
    image = alpha * np.array(COLOURS["red"]) + (1 - alpha) * np.array(BACKGROUND)
    return np.round(image).astype(np.uint8)[None]


def test_larger_things_are_to_the_taste_as_long_as_they_are_things() -> None:
    small, large, smear = (
        ShapesTaste().score(circle(radius), [""])[0] for radius in (3.4, 4.8, 14.0)
    )
    assert 0.05 < small < large < 1
    assert smear == 0


def test_an_empty_picture_is_worth_nothing() -> None:
    empty = np.full((1, 32, 32, 3), 30, np.uint8)
    assert ShapesTaste().score(empty, [""]).tolist() == [0.0]


def test_the_network_ranks_drawn_scenes_like_the_taste() -> None:
    pictures = scenes(200)
    truth = ShapesTaste().score(pictures, [""] * 200)
    guess = ShapesAesthetic().score(pictures, [""] * 200)
    assert np.corrcoef(truth, guess)[0, 1] > 0.5


def test_a_gradient_misleads_the_network_and_not_the_taste() -> None:
    picture = scenes(1)
    image = torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 255
    net = ShapesAesthetic()
    for _ in range(60):
        image.requires_grad_()
        (slope,) = torch.autograd.grad(net(image, [""]).sum(), image)
        image = (image.detach() + 0.02 * slope.sign()).clamp(0, 1)
    misled = (image.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    assert net.score(misled, [""])[0] > 2 * net.score(picture, [""])[0]
    assert ShapesTaste().score(misled, [""])[0] < ShapesTaste().score(picture, [""])[0]


def test_the_network_has_a_gradient_to_the_image() -> None:
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    ShapesAesthetic()(image, [""]).sum().backward()
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0
