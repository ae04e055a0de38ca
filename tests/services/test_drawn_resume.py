"""Whole runs of methods that draw from the replay: a stop in their midst changes no bit."""

import threading
from pathlib import Path

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from learner.settings.cycles import Cycles
from learner.settings.likelihood import Dpo, Gors
from learner.settings.sqdf import Sqdf
from tests.services.training_world import World

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.usefixtures("one_rank")]
# Chains of fifty steps take their time.
SHORT = {
    "cycles": 2,
    "groups_per_cycle": 1,
    "policy_steps": 2,
    "policy_batch": 2,
    "learning_rate": 1e-3,
}
SETTINGS: dict[str, Cycles] = {
    "gors": Gors.model_validate({**SHORT, "kept_share": 0.5}),
    "dpo": Dpo.model_validate({**SHORT, "beta": 100.0}),
    "sqdf": Sqdf.model_validate(
        {
            **SHORT,
            "reward": "decoded",
            "clean": {"by": "tweedie"},
            "states": {"kept": 2},
            "pretrain": {"groups": 1},
            "target_kl": 1e-6,
        }
    ),
}


def stop_in_the_midst(version: int, stopping: threading.Event) -> None:
    if version == 1:
        stopping.set()


@pytest.mark.parametrize("method", SETTINGS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    method: str,
    server: EmbeddedServer,
    pipelines: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    straight, stopped = (
        World(server.url, folder.name, folder, pipelines, settings=SETTINGS[method])
        for folder in (tmp_path_factory.mktemp(method) for _ in range(2))
    )
    whole = straight.live()
    assert not stopped.live(at_version=stop_in_the_midst).finished
    resumed = stopped.live(resume=True)
    assert resumed.finished
    first = whole.published[0]
    assert any(
        not np.array_equal(first[name], array) for name, array in resumed.final_weights.items()
    )
    for name, array in whole.final_weights.items():
        np.testing.assert_array_equal(resumed.final_weights[name], array, err_msg=name)
