"""The running average of trained weights."""

from pathlib import Path

import pytest
import torch

from learner.policy.average import WeightAverage


def test_each_step_moves_it_a_share_of_the_way(tmp_path: Path) -> None:
    weights = {"a": torch.nn.Parameter(torch.tensor([1.0, 2.0]))}
    average = WeightAverage(weights, decay=0.75)
    for value in (5.0, 9.0):
        with torch.no_grad():
            weights["a"].fill_(value)
        average.follow()
    # 1 -> 2 -> 3.75 and 2 -> 2.75 -> 4.3125
    assert average.arrays()["a"].tolist() == pytest.approx([3.75, 4.3125])

    average.save(tmp_path / "average.safetensors")
    again = WeightAverage(weights, decay=0.75)
    again.load(tmp_path / "average.safetensors")
    assert again.arrays()["a"].tolist() == average.arrays()["a"].tolist()
    assert weights["a"].tolist() == [9.0, 9.0]
