"""A run's folder belongs to one driver at a time, and tells the next what the last one knew."""

import dataclasses
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from buffer.records import Counters
from deploy.run.folder import RunFolder
from deploy.run.outcome import Earlier, Outcome
from deploy.settings.problems import ConfigError
from deploy.settings.run_config import load_config
from learner import checkpoint

HOLDER = """
import sys
from pathlib import Path
from deploy.run.folder import RunFolder
from deploy.settings.run_config import load_config
folder = RunFolder(Path(sys.argv[1]))
folder.open(load_config("deploy/configs/smoke.yaml", ["name=mine", "seed=1"]), resume=False)
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_driver_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    other = load_config("deploy/configs/smoke.yaml", ["name=mine", "seed=1", "actors.count=2"])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        written = (path / "config.json").read_text()
        begun = time.monotonic()
        told = rf"another driver is at work on the run.*process {holder.pid} on .*: stop it first"
        with pytest.raises(ValueError, match=told):
            RunFolder(path).open(other, resume=True)
        assert time.monotonic() - begun < 10
        assert (path / "config.json").read_text() == written
        holder.kill()
    RunFolder(path).open(other, resume=True)
    assert (path / "config.json").read_text() == other.to_json()


@contextmanager
def locked_by(folder: Path, **holder: Any) -> Iterator[None]:
    """A folder whose lock another process has, or a machine that is lost still has."""
    folder.mkdir()
    told = {"host": "gone", "pid": os.getpid(), "began": psutil.Process().create_time(), **holder}
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(told))
        file.flush()
        yield


def test_the_lock_of_a_lost_machine_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, config = tmp_path / "mine", load_config("deploy/configs/smoke.yaml", ["name=mine"])
    with ExitStack() as lease, caplog.at_level(logging.INFO):
        lease.enter_context(locked_by(path, pid=77))
        threading.Timer(1.5, lease.close).start()
        RunFolder(path).open(config, resume=False)
    waits = [line for line in caplog.messages if "for process 77 on gone" in line]
    assert len(waits) == 1
    assert json.loads((path / "lock").read_text())["pid"] == os.getpid()


def test_who_waits_in_vain_is_told_for_whom_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.run.folder_lock.LEASE_S", 0.6)
    path, config = tmp_path / "mine", load_config("deploy/configs/smoke.yaml", ["name=mine"])
    told = rf"process 77 on gone: .* if its machine is gone, remove {path}/lock"
    with locked_by(path, pid=77), pytest.raises(ValueError, match=told):
        RunFolder(path).open(config, resume=False)


def test_a_process_of_the_same_number_on_a_machine_of_the_same_name_is_another(
    tmp_path: Path,
) -> None:
    path, config = tmp_path / "mine", load_config("deploy/configs/smoke.yaml", ["name=mine"])
    with ExitStack() as lease:
        lease.enter_context(locked_by(path, host=socket.gethostname(), began=5.0))
        threading.Timer(0.7, lease.close).start()
        RunFolder(path).open(config, resume=False)
    assert (path / "config.json").exists()


def begun(path: Path, *settings: str) -> str:
    """The folder of a run that a driver has left; what its config is."""
    path.mkdir()
    config = load_config("deploy/configs/smoke.yaml", ["name=mine", *settings])
    (path / "config.json").write_text(config.to_json())
    return config.to_json()


def test_a_run_goes_on_with_what_may_change_and_its_folder_tells_so(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    begun(path)
    more = load_config("deploy/configs/smoke.yaml", ["name=mine", "method.cycles=9"])
    RunFolder(path).open(more, resume=True)
    assert (path / "config.json").read_text() == more.to_json()
    assert {each.name for each in path.iterdir()} == {"config.json", "lock", "starts.json"}


def test_every_start_has_a_token_and_knows_those_of_the_starts_before_it(tmp_path: Path) -> None:
    config = load_config("deploy/configs/smoke.yaml", ["name=mine"])
    begins, resumes = RunFolder(tmp_path / "new"), RunFolder(tmp_path / "mine")
    begins.open(config, resume=False)
    first = begins.replay_start
    assert first is not None
    assert (first.former, first.is_new) == ([], True)
    assert f":{begins.path} (" in first.token
    begun(resumes.path)
    (resumes.path / "starts.json").write_bytes((begins.path / "starts.json").read_bytes())
    resumes.open(config, resume=True)
    second = resumes.replay_start
    assert second is not None
    assert (second.former, second.is_new) == ([first.token], False)
    told = json.loads((resumes.path / "starts.json").read_text())
    assert told == {"starts": [first.token, second.token]}


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"starts": 3}'])
def test_starts_that_cannot_be_read_are_told_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    written = begun(path)
    (path / "starts.json").write_bytes(content)
    more = load_config("deploy/configs/smoke.yaml", ["name=mine", "method.cycles=9"])
    with pytest.raises(ValueError, match=rf"{path}/starts.json, the starts of the run, cannot be"):
        RunFolder(path).open(more, resume=True)
    assert (path / "config.json").read_text() == written
    assert (path / "starts.json").read_bytes() == content
    assert not RunFolder(path).is_held()


def test_other_settings_are_refused_all_at_once_and_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    written = begun(path)
    other = load_config(
        "deploy/configs/smoke.yaml", ["name=mine", "seed=2", "evaluation.samples=9"]
    )
    with pytest.raises(ConfigError) as refused:
        RunFolder(path).open(other, resume=True)
    assert [problem.path for problem in refused.value.problems] == ["seed", "evaluation.samples"]
    assert str(refused.value).startswith(f"the run in {path}: 2 problems\n  - seed: was 0, given 2")
    assert (path / "config.json").read_text() == written
    # Whoever gives the old ones again in the same process finds the folder free.
    assert not RunFolder(path).is_held()
    RunFolder(path).open(
        load_config("deploy/configs/smoke.yaml", ["name=mine", "seed=0"]), resume=True
    )


def test_what_is_changed_in_the_folder_too_agrees(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    told = json.loads(begun(path))
    moved = load_config("deploy/configs/smoke.yaml", ["name=mine", "model.path=elsewhere"])
    folder = RunFolder(path)
    assert [problem.path for problem in folder.changed(moved)] == ["model.path"]
    told["model"]["path"] = "elsewhere"
    (path / "config.json").write_text(json.dumps(told))
    assert folder.changed(moved) == []


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    written = begun(path)
    (path / "checkpoints" / "00000003").mkdir(parents=True)
    more = load_config("deploy/configs/smoke.yaml", ["name=mine", "method.cycles=9"])
    with pytest.raises(ValueError, match=r"every checkpoint .* is damaged \(00000003: state.json"):
        RunFolder(path).open(more, resume=True)
    assert (path / "config.json").read_text() == written
    assert not RunFolder(path).is_held()


def test_rounds_that_a_checkpoint_knows_bind_though_the_config_tells_of_fewer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine"
    written = begun(path, "method.cycles=2")  # as a resume wrote it after four were done
    state = {"next_cycle": 4, "method": {"round_ends": [8, 12, 16, 20, 24]}}
    checkpoint.write(path, 4, state, lambda part: None, rank=0, barrier=lambda: None, keep=2)
    odd, right = (
        load_config("deploy/configs/smoke.yaml", ["name=mine", "method.cycles=5", sizes])
        for sizes in ("method.groups_per_cycle=[4,4,4,2,2]", "method.groups_per_cycle=[4,4,4,4,2]")
    )
    with pytest.raises(ConfigError, match=r"round 5 of the 5 .* had 4 groups, and has 2"):
        RunFolder(path).open(odd, resume=True)
    assert (path / "config.json").read_text() == written
    RunFolder(path).open(right, resume=True)
    assert (path / "config.json").read_text() == right.to_json()


@pytest.mark.parametrize("content", [b"", b'{"seed": ', b"[]", b"\xff\xfe"])
def test_a_config_that_cannot_be_read_is_told_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_bytes(content)
    config = load_config("deploy/configs/smoke.yaml", ["name=mine"])
    told = rf"{path}/config.json, what the run was begun with, cannot be read: .*Put it back"
    with pytest.raises(ConfigError, match=told):
        RunFolder(path).open(config, resume=True)
    assert (path / "config.json").read_bytes() == content
    (path / "config.json").write_text("{}")
    RunFolder(path).open(config, resume=True)
    assert (path / "config.json").read_text() == config.to_json()


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
