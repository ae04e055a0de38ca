"""A whole PSO run whose rows are all beyond the clip: told once, whatever a resume repeats."""

import logging
from pathlib import Path

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from tests.services.training_world import PSO, World

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("one_rank")]


def test_a_policy_that_no_longer_learns_is_told_of_once(
    server: EmbeddedServer, pipelines: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The first update is of the untouched policy, whose ratio is 1; it leaves so narrow a clip.
    narrow = PSO.model_copy(update={"ratio_clip": 1e-9})
    world = World(server.url, tmp_path.name, tmp_path, pipelines, settings=narrow)
    with caplog.at_level(logging.WARNING):
        stopped = world.live(at_version=lambda version, stopping: version == 2 and stopping.set())
        life = world.live(resume=True)
    assert not stopped.finished
    assert life.finished
    shares = [r["values"]["clip_fraction"] for r in life.rows if r["phase"] == "policy"]
    assert np.array_equal(shares, [1.0] * 3)
    told = [text for text in caplog.messages if "no longer learns from its reward" in text]
    assert len(told) == 1
    assert told[0].startswith("cycle 1: ")
    assert "lower method.learning_rate or widen method.ratio_clip" in told[0]
