"""Pictures of evaluations: which of them stay, and that none is half."""

from pathlib import Path

import numpy as np
import pytest

from deploy.evaluation.kept import save_pictures, surplus


def test_what_is_left_out_is_what_is_closest_and_the_earliest_of_that() -> None:
    assert surplus([1, 2, 3, 10, 20, 30], best=None, most=5) == [2]
    assert surplus([1, 2, 3, 10, 20, 30], best=2, most=5) == [3]
    assert surplus([5, 1, 9], best=None, most=4) == []


def test_pictures_that_cannot_be_written_leave_nothing_half(tmp_path: Path) -> None:
    target = tmp_path / "pictures" / "cycle-000001.npz"
    save_pictures(target, np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"])
    with np.load(target) as told:
        assert told["prompts"].tolist() == ["a", "b"]
    target.with_name("cycle-000002.npz.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        save_pictures(
            target.with_name("cycle-000002.npz"), np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"]
        )
    assert [path.name for path in target.parent.iterdir()] == [target.name]
