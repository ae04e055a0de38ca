"""Rewards that ask what a prompt comes with: who is handed it, whose, and what is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reward_servers.base import Failure, checked_scores
from reward_servers.metadata import asks_for_metadata, informed
from reward_servers.metadata_module import informed_module
from reward_servers.noisy import NoisyReward
from reward_servers.registry import check_metadata

TABLE = {"one": {"n": 1.0}, "two": {"n": 2.0}, "none": {}}
IMAGES = np.zeros((3, 2, 2, 3), dtype=np.uint8)
KIND = f"{__name__}:Asking"


class Asking(nn.Module):
    """What the metadata says, plus the picture's red."""

    def score(
        self, images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> np.ndarray:
        return np.array([row["n"] for row in metadata], dtype=np.float32)

    def forward(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        return images[:, 0].mean(dim=(1, 2)) + torch.tensor([row["n"] for row in metadata])

    @staticmethod
    def check_metadata(metadata: Mapping[str, Any], unit: str = "") -> None:
        if "n" not in metadata:
            raise ValueError(f"n is missing{unit}")


class Plain(nn.Module):
    def score(self, images: np.ndarray, prompts: Sequence[str], **options: int) -> np.ndarray:
        assert not options
        return np.zeros(len(prompts), dtype=np.float32)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.sum(dim=(1, 2, 3))


def test_a_reward_that_asks_gets_the_metadata_of_each_row() -> None:
    reward = informed(Asking(), TABLE)
    assert checked_scores(reward, IMAGES, ["two", "one", "two"]) == [2.0, 1.0, 2.0]


def test_rows_that_are_scored_alone_keep_their_own_metadata() -> None:
    # "none" lacks what is asked for, so that the batch is scored again row by row.
    outcomes = checked_scores(informed(Asking(), TABLE), IMAGES, ["two", "none", "one"])
    assert outcomes == [2.0, Failure("KeyError: 'n'"), 1.0]


def test_a_prompt_that_is_not_in_the_set_fails_and_no_other() -> None:
    first, second = checked_scores(informed(Asking(), TABLE), IMAGES[:2], ["gone", "one"])
    assert isinstance(first, Failure)
    assert "'gone' is not in the run's prompt set" in first.reason
    assert second == 1.0


def test_a_reward_that_does_not_ask_is_left_as_it_is() -> None:
    plain = Plain()
    assert informed(plain, TABLE) is plain
    assert informed_module(plain, TABLE) is plain
    assert not asks_for_metadata(max)


def test_noise_is_added_to_what_an_informed_reward_says() -> None:
    noisy = NoisyReward(informed(Asking(), TABLE), 1e-9, name="a", seed=0)
    assert checked_scores(noisy, IMAGES[:1], ["two"]) == [pytest.approx(2.0)]


def test_a_module_gets_it_in_forward_and_lets_the_gradient_pass() -> None:
    module = informed_module(Asking(), TABLE)
    images = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = module(images, ["one", "two"])
    values.sum().backward()
    torch.testing.assert_close(values, images[:, 0].mean(dim=(1, 2)) + torch.tensor([1.0, 2.0]))
    assert images.grad is not None
    assert float(images.grad[:, 0].sum()) == pytest.approx(2.0)


def test_what_a_reward_cannot_do_with_is_told_before_anything_starts() -> None:
    check_metadata(KIND, {}, {"one": {"n": 1}})
    with pytest.raises(ValueError, match=r"cannot score the prompt 'none' .*: n is missing, kg"):
        check_metadata(KIND, {"unit": ", kg"}, TABLE)
