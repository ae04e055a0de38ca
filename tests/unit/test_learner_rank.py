"""A rank of the learner, where what it is to do does not work."""

import json
from pathlib import Path

import pytest

from deploy.run.build import LearnerRank
from deploy.run.parts import RunParts
from deploy.run.shared_folder import SharedFolder
from deploy.settings.run_config import load_config


def test_a_rank_that_raises_tells_it_before_it_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NCCL to leave is to wait for the others, who wait for this one."""
    left: list[bool] = []

    def refuse(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("learner.engine.join_ranks", lambda *_, **__: None)
    monkeypatch.setattr("learner.engine.leave_ranks", lambda: left.append(True))
    monkeypatch.setattr("deploy.run.build_method.build_method", refuse)
    config = load_config("deploy/configs/smoke.yaml", ["name=n", "learner.sample_trace=false"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "cluster.json").write_text(json.dumps({"start": "now"}))
    parts = RunParts(config, None, SharedFolder(tmp_path, "now"))  # pyright: ignore
    rank = LearnerRank(parts, 0, None)
    with pytest.raises(RuntimeError, match="out of memory"):
        rank.run("127.0.0.1", 1, resume=False)
    assert left == []
