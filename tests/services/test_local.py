"""The local runner with a real Ray head: what the job gets, and that nothing stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from deploy.local_head import HeadError, LocalHead

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 150

# Runs the Python text of argv[1] as a job, as `deploy.local` runs `deploy.launch`.
RUNNER = """
import logging, sys
from pathlib import Path
from deploy.local import StopRequest, run_job
logging.basicConfig(format="%(message)s", level=logging.INFO)
stop = StopRequest()
stop.listen()
job = [sys.executable, "-c", sys.argv[1]]
sys.exit(run_job(job, run="r", runs=Path(sys.argv[2]), num_cpus=1, stop=stop))
"""
# One line, as Ray repeats the command line in the log.
SHORT_JOB = "; ".join(
    (
        "import os, sys",
        "print('cwd', os.getcwd())",
        "print('runs', os.environ['FLEETUNE_RUNS'])",
        "print('redis', os.environ['REDIS_URL'])",
        "sys.exit(7)",
    )
)
LONG_JOB = """
import os, signal, sys, time
def end(*_):
    time.sleep(4)  # longer than the three seconds that Ray gives by default
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("cwd", os.getcwd())
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@dataclass(frozen=True)
class Ended:
    """A runner that has ended."""

    status: int
    output: str

    def value(self, key: str) -> str:
        return next(
            line.split(" ", 1)[1] for line in self.output.splitlines() if line.startswith(f"{key} ")
        )

    @property
    def session(self) -> str:
        """The head's own folder, which every command line of its processes names."""
        return "/".join(self.value("cwd").split("/")[:3])


def _start(job: str, runs: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, job, str(runs)],
        cwd=ROOT,
        env={**os.environ, "REDIS_URL": "redis://:secret@nowhere", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _read_until(process: "subprocess.Popen[str]", start: str) -> str:
    """The output up to a line that begins so; ends when the process does."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            break
    return "".join(lines)


def _finish(process: "subprocess.Popen[str]", output: str = "") -> Ended:
    rest, _ = process.communicate(timeout=TIMEOUT_S)
    return Ended(process.returncode, output + rest)


def _left_of(session: str) -> list[str]:
    """Command lines of processes that belong to a session."""
    lines = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    return [line for line in lines if session in line]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Ended]:
    """Two runners side by side: one whose job ends by itself, one that gets a Ctrl-C."""
    runs = tmp_path_factory.mktemp("runs")
    short, long = _start(SHORT_JOB, runs / "short"), _start(LONG_JOB, runs / "long")
    try:
        begun = _read_until(long, "pid ")
        long.send_signal(signal.SIGINT)
        return _finish(short), _finish(long, begun)
    finally:
        for process in (short, long):
            process.kill()


@pytest.fixture
def finished(both: tuple[Ended, Ended]) -> Ended:
    return both[0]


@pytest.fixture
def interrupted(both: tuple[Ended, Ended]) -> Ended:
    return both[1]


def test_the_exit_status_is_the_jobs(finished: Ended) -> None:
    assert finished.status == 7, finished.output


def test_the_terminal_shows_the_address_and_the_jobs_lines_only(finished: Ended) -> None:
    starts = [line.split(" ")[0] for line in finished.output.splitlines()]
    assert sorted(starts) == ["Ray", "cwd", "redis", "runs"]


def test_the_job_writes_outside_its_copied_working_directory(finished: Ended) -> None:
    assert Path(finished.value("runs")).name == "short"


def test_the_job_inherits_the_redis_url(finished: Ended) -> None:
    assert finished.value("redis") == "redis://:secret@nowhere"


def test_two_runners_side_by_side_have_sessions_of_their_own(
    finished: Ended, interrupted: Ended
) -> None:
    assert finished.session != interrupted.session


def test_ctrl_c_gives_the_job_time_to_save(interrupted: Ended) -> None:
    assert "saved" in interrupted.output.splitlines()


def test_ctrl_c_ends_with_the_status_of_an_interrupt(interrupted: Ended) -> None:
    assert interrupted.status == 128 + signal.SIGINT


def test_a_finished_run_leaves_no_process(finished: Ended) -> None:
    assert _left_of(finished.session) == []


def test_ctrl_c_leaves_no_process(interrupted: Ended) -> None:
    job = int(interrupted.value("pid"))
    assert (_left_of(interrupted.session), psutil.pid_exists(job)) == ([], False)


def test_no_file_of_a_session_stays(both: tuple[Ended, Ended]) -> None:
    assert [ended.session for ended in both if Path(ended.session).exists()] == []


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Ended]:
    process = _start(LONG_JOB, tmp_path)
    begun = _read_until(process, "pid ")
    process.kill()
    ended = Ended(process.wait(), begun)
    yield ended
    shutil.rmtree(ended.session, ignore_errors=True)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent-death signal")
def test_a_killed_runner_takes_its_head_and_job_with_it(killed: Ended) -> None:
    job, deadline = int(killed.value("pid")), time.monotonic() + 60
    while _left_of(killed.session) or psutil.pid_exists(job):
        assert time.monotonic() < deadline, _left_of(killed.session)
        time.sleep(0.5)


@pytest.fixture
def headless(tmp_path: Path) -> Ended:
    """A runner whose Ray dies while its job runs."""
    process = _start(LONG_JOB, tmp_path / "runs")
    try:
        begun = _read_until(process, "pid ")
        session = Ended(0, begun).session
        for each in psutil.process_iter(["name", "cmdline"]):
            if each.info["name"] == "gcs_server" and session in " ".join(each.info["cmdline"]):
                each.kill()
        return _finish(process, begun)
    finally:
        process.kill()


def test_a_run_whose_ray_dies_fails_with_what_ray_said_last(
    headless: Ended, tmp_path: Path
) -> None:
    logs = tmp_path / "runs" / "r-ray-logs"
    assert (headless.status, (logs / "gcs_server.out").is_file()) == (1, True), headless.output
    assert "gcs_server" in headless.output.split("last words:")[1]


class FailsAtFirst(LocalHead):
    """A head whose first `fails` starts end at once."""

    def __init__(self, fails: int) -> None:
        super().__init__(num_cpus=1, environ=dict(os.environ))
        self.fails = fails

    def _start(self, folder: Path) -> "subprocess.Popen[bytes]":
        process = super()._start(folder)
        if self.fails:
            self.fails -= 1
            process.terminate()
            process.wait()
            (folder / "head.log").write_text("not this time")
        return process


def test_a_head_that_does_not_come_up_is_started_once_more() -> None:
    with FailsAtFirst(1) as head:
        assert head.wait_ready(timeout_s=TIMEOUT_S, should_stop=lambda: False)


def test_a_head_that_never_comes_up_is_an_error_with_its_last_words() -> None:
    with FailsAtFirst(2) as head, pytest.raises(HeadError, match="not this time"):
        head.wait_ready(timeout_s=TIMEOUT_S, should_stop=lambda: False)
