"""A run's folder belongs to one driver at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.outcome import RunFolder
from deploy.run_config import load_config

HOLDER = """
import sys
from pathlib import Path
from deploy.outcome import RunFolder
from deploy.run_config import load_config
folder = RunFolder(Path(sys.argv[1]))
folder.open(load_config("deploy/configs/smoke.yaml", ["name=mine", "seed=1"]), resume=False)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_driver_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    other = load_config("deploy/configs/smoke.yaml", ["name=mine", "seed=2"])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        written = (path / "config.json").read_text()
        with pytest.raises(ValueError, match="another driver is at work on the run"):
            RunFolder(path).open(other, resume=True)
        assert (path / "config.json").read_text() == written
        holder.kill()
    RunFolder(path).open(other, resume=True)
    assert (path / "config.json").read_text() == other.to_json()
