"""What tests of several kinds share."""

from pathlib import Path

import pytest

from deploy.drills.tiny import save_tiny_pipelines


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `base`, a many-step pipeline, and `lcm`, a two-step one; to be read only."""
    return save_tiny_pipelines(tmp_path_factory.mktemp("pipelines"))
