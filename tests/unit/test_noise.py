"""Noise is a function of its key: seed, member and stream."""

import itertools

import numpy as np
import pytest
import torch

from learner.diffusion.noise import INITIAL_NOISE, group_noise, member_noise

SHAPE = (4, 8, 8)
GOLDEN_NOISE = [-0.653769314289093, 0.998100996017456]


def test_noise_never_changes_between_releases() -> None:
    first = member_noise(2**64 - 1, 3, (2,), 1)
    np.testing.assert_array_equal(first.numpy(), np.array(GOLDEN_NOISE, np.float32))


def test_noise_does_not_depend_on_what_was_drawn_before() -> None:
    alone = member_noise(5, 2, SHAPE, 0)
    torch.randn(3)
    np.random.default_rng(0).normal()
    assert torch.equal(group_noise(5, 6, SHAPE, 0)[2], alone)


@pytest.mark.parametrize(
    "other", [(6, 0, 0), (5 + 2**32, 0, 0), (5 + 2**63, 0, 0), (5, 1, 0), (5, 0, 1)]
)
def test_noise_differs_in_every_part_of_its_key(other: tuple[int, int, int]) -> None:
    seed, member, stream = other
    assert not torch.equal(member_noise(5, 0, SHAPE, 0), member_noise(seed, member, SHAPE, stream))


def test_noise_is_standard_normal() -> None:
    noise = member_noise(1, 0, (100_000,), INITIAL_NOISE)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.02
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)


def test_members_and_streams_are_uncorrelated() -> None:
    keys = itertools.product((1, 2), range(3), range(3))
    rows = torch.stack([member_noise(seed, m, (10_000,), s) for seed, m, s in keys])
    off_diagonal = torch.corrcoef(rows) - torch.eye(len(rows))
    assert off_diagonal.abs().max().item() < 0.05


def test_shared_noise_is_one_for_all_members() -> None:
    shared = group_noise(5, 3, SHAPE, INITIAL_NOISE, shared=True)
    assert torch.equal(shared, member_noise(5, 0, SHAPE, INITIAL_NOISE).expand(3, *SHAPE))
