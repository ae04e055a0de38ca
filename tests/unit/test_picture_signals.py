"""Colour entropy and sharpness of pictures whose values are known."""

import numpy as np
import pytest

from deploy.evaluation.signals import colour_entropy, sharpness


def plain(*colours: tuple[int, int, int], side: int = 8) -> np.ndarray:
    """A picture of one colour for each."""
    return np.stack([np.full((side, side, 3), colour, np.uint8) for colour in colours])


def test_one_colour_everywhere_has_no_entropy() -> None:
    assert colour_entropy(plain((200, 10, 30), (200, 10, 30))) == 0.0


def test_two_colours_in_equal_parts_are_one_bit() -> None:
    assert colour_entropy(plain((0, 0, 0), (255, 255, 255))) == pytest.approx(1.0)


def test_every_bin_equally_often_is_nine_bits() -> None:
    levels = np.arange(8) * 32
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, 16, 32, 3)
    assert colour_entropy(cube.astype(np.uint8)) == pytest.approx(9.0)


def test_shares_of_a_quarter_and_three_quarters_have_their_textbook_entropy() -> None:
    images = plain((0, 0, 0), (255, 0, 0), (255, 0, 0), (255, 0, 0))
    assert colour_entropy(images) == pytest.approx(0.811278, abs=1e-6)


def test_tints_of_one_bin_are_one_colour() -> None:
    assert colour_entropy(plain((0, 0, 0), (31, 31, 31))) == 0.0


def test_the_order_of_pixels_does_not_change_the_entropy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)
    mixed = images.reshape(-1, 3)[::-1].reshape(images.shape)
    assert colour_entropy(mixed) == pytest.approx(colour_entropy(images))


def test_a_plain_picture_and_a_slope_have_no_sharpness() -> None:
    slope = np.broadcast_to(np.arange(0, 80, 10, dtype=np.uint8)[None, :, None], (8, 8, 3))
    assert sharpness(plain((90, 90, 90))) == pytest.approx(0.0, abs=1e-9)
    assert sharpness(slope[None]) == pytest.approx(0.0, abs=1e-9)


def test_a_chessboard_is_as_sharp_as_its_laplacian_says() -> None:
    # Inside, a Laplacian is 4 times 255 up or down, on equally many pixels: variance 1020².
    board = (np.indices((6, 6)).sum(axis=0) % 2 * 255).astype(np.uint8)
    images = np.repeat(board[None, :, :, None], 3, axis=3)
    assert sharpness(images) == pytest.approx(1020.0**2)


def test_sharpness_is_the_mean_over_the_pictures() -> None:
    board = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    both = np.concatenate([plain((0, 0, 0)), np.repeat(board[None, :, :, None], 3, axis=3)])
    assert sharpness(both) == pytest.approx(1020.0**2 / 2)
