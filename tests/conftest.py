"""What tests of several kinds share."""

import os
from pathlib import Path

import pytest

from deploy.drills.tiny import save_tiny_pipelines
from deploy.run.leaving import leave

# A machine with GPUs gives the figures of one without: GPUs are for `deploy.bench.gpu`.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
_STATUS = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """What follows the last report and may crash is left out; workers report to another."""
    if _STATUS in config.stash and not hasattr(config, "workerinput"):
        leave(config.stash[_STATUS])


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, a many-step pipeline, and `lcm`, a two-step one; to be read only."""
    return save_tiny_pipelines(tmp_path_factory.mktemp("pipelines"))
