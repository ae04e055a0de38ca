"""The local runner's command line and output, without Ray."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import local_head
from deploy.local import _checked, _options, job_lines
from deploy.local_head import HeadError, _claimed, _sweep, free_ports

ROOT = Path(__file__).resolve().parents[2]
SMOKE = "deploy/configs/smoke.yaml"


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "deploy.local", *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_config_error_is_reported_before_ray_starts() -> None:
    ended = _run("--run", "x", "--", SMOKE, "actors.cuont=2")
    assert (ended.returncode, "did you mean actors.count?" in ended.stderr) == (2, True)


def test_a_missing_model_is_reported_before_ray_starts() -> None:
    ended = _run("--run", "x", "--", SMOKE, "model.path=no/such/folder")
    assert (ended.returncode, "model.path: the folder no/such/folder" in ended.stderr) == (2, True)


def test_resuming_needs_the_name_of_the_run() -> None:
    ended = _run("--resume", "--", SMOKE)
    assert (ended.returncode, "--resume needs --run NAME" in ended.stderr) == (2, True)


def test_only_the_jobs_own_lines_are_shown() -> None:
    printed = [
        "Job submission server address: http://127.0.0.1:1",
        "2026-11-22 14:41:17,488\tINFO cli.py:41 -- Tailing logs until the job exits (disable):",
        "2026-11-22 14:41:18,100\tINFO job_manager.py:568 -- Runtime env is setting up.",
        "Running entrypoint for job r-1: python -c ...",
        "cycle 1/2",
        "Job 'other' failed",
        "2026-11-22 14:42:02,090\tERR cli.py:74 -- Job 'r-1' failed",
        "Status message: ... cycle 1/2",
    ]
    assert list(job_lines(printed, job="r-1")) == ["cycle 1/2", "Job 'other' failed"]


def test_a_submission_that_failed_is_shown_in_full() -> None:
    assert list(job_lines(["no such cluster"], job="r-1")) == ["no such cluster"]


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20


@pytest.mark.skipif(sys.platform != "linux", reason="where Linux says which ports it gives out")
def test_no_connection_is_given_a_free_port() -> None:
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert max(free_ports(20)) < max(int(given[0]), 32_768)


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_ports(2)
    with socket.socket() as listener:
        listener.bind(("", taken))
        monkeypatch.setattr(local_head, "_PORTS", (taken, taken + 1))
        with pytest.raises(HeadError, match="1 free ports are needed"):
            free_ports(1)
    monkeypatch.setattr(local_head, "_PORTS", (free, free + 1))
    assert free_ports(1) == [free]


def _session(folder: Path, name: str) -> Path:
    session = folder / name
    session.mkdir()
    return session


def test_what_a_killed_runner_left_is_swept(tmp_path: Path) -> None:
    dead = _session(tmp_path, "ft-dead")
    (dead / "runner.lock").touch()
    _sweep(tmp_path)
    assert not dead.exists()


def test_the_session_of_a_living_runner_is_not_swept(tmp_path: Path) -> None:
    living = _session(tmp_path, "ft-living")
    lock = _claimed(living)
    assert lock is not None
    _sweep(tmp_path)
    os.close(lock)
    assert living.exists()


def test_a_folder_that_is_no_session_is_not_swept(tmp_path: Path) -> None:
    other = _session(tmp_path, "ft-other")
    _sweep(tmp_path)
    assert other.exists()


def test_a_job_carries_the_facts_of_its_run() -> None:
    found = _checked(_options(["--run", "mine", SMOKE, "seed=7", "method.cycles=3"]))
    assert found is not None
    runs, facts = found
    assert runs.is_absolute()
    assert facts == {"run": "mine", "preset": "smoke.yaml", "method": "lasro", "seed": "7"}
