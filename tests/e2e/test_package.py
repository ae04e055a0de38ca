"""What `ray job submit --working-dir .` uploads."""

from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).resolve().parents[2]
LARGEST_MB = 20


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("package") / "working_dir.zip"
    create_package(str(ROOT), target, include_gitignore=True)
    return target


def test_the_upload_is_small(package: Path) -> None:
    assert package.stat().st_size < LARGEST_MB * 2**20


def test_the_upload_holds_what_a_run_needs(package: Path) -> None:
    needed = {"deploy/launch.py", "deploy/configs/smoke.yaml", "buffer/lua/commit.lua"}
    with ZipFile(package) as archive:
        assert needed <= set(archive.namelist())


def test_the_upload_holds_no_run_and_no_environment(package: Path) -> None:
    with ZipFile(package) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops.isdisjoint({".git", ".venv", "runs"})
