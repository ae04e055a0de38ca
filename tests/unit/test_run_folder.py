"""A run's folder belongs to one driver at a time, and tells the next what the last one knew."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from buffer.records import Counters
from deploy.outcome import Earlier, Outcome, RunFolder
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


def outcome(records: int, earlier: Earlier, **workers: dict[str, Any]) -> Outcome:
    """Of a start that ended with so many records of the run drawn."""
    config = load_config("deploy/configs/smoke.yaml", ["name=mine", "learner.ranks=2"])
    none = {field.name: 0 for field in dataclasses.fields(Counters)}
    counters = Counters(**{**none, "issued_records": records})
    flops = {"policy": 5.0}
    return Outcome(config, 0, earlier, counters=counters, flops=flops, workers=workers)


def test_what_samplers_took_is_known_after_a_resume_with_nothing_left_to_draw(
    tmp_path: Path,
) -> None:
    assert RunFolder(tmp_path).earlier() == Earlier()
    sampler = {"flops": 700.0, "images": 7}
    first = outcome(8, Earlier(wall_s=20), sampler=sampler, other={"flops": 0.0, "images": 0})
    assert first.summary()["flops"] == {"policy": 10.0, "sampling": 800.0}
    (tmp_path / "summary.json").write_text(json.dumps(first.summary()))
    earlier = RunFolder(tmp_path).earlier()
    assert earlier.record_flops == 100
    assert earlier.wall_s >= 20
    idle = {"flops": 0.0, "images": 0}
    assert outcome(9, earlier, sampler=idle).summary()["flops"]["sampling"] == 900
    assert "sampling" not in outcome(9, Earlier(), sampler=idle).summary()["flops"]
