"""What a run leaves behind where the weights of its policy steps are averaged."""

from pathlib import Path

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from tests.services.training_world import RLCM, World

pytestmark = [pytest.mark.redis, pytest.mark.usefixtures("one_rank")]
DECAY = 0.75


def test_the_last_version_is_the_average_over_all_policy_steps(
    server: EmbeddedServer, pipelines: Path, tmp_path: Path
) -> None:
    settings = RLCM.model_copy(update={"policy_steps": 1, "weight_average": DECAY})
    life = World(server.url, "averaged", tmp_path, pipelines, settings=settings).live()
    # With one step a cycle, what was published after a cycle is what its step led to.
    steps = [life.published[version + 1] for version in range(settings.cycles)]
    average = steps[0]
    for weights in steps[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name] for name in weights}
    assert max(life.published) == settings.cycles + 1
    for name, array in life.final_weights.items():
        np.testing.assert_allclose(array, average[name], rtol=1e-5, atol=1e-7)
    assert any(not np.allclose(steps[-1][name], average[name]) for name in average)
