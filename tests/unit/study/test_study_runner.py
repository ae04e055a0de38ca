"""A study's runs as processes: how many at a time, what is handed on to them, who comes after."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local_head import start_child
from deploy.settings.run_config import load_config
from deploy.study.file import Cell
from deploy.study.runner import Runner

RUN = """
import json, pathlib, signal, sys, time
folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
got = []
def asked(number, frame):
    got.append(number)
    (folder / "signals").write_text(json.dumps(got))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, asked)
(folder / "begun").write_text(str(time.time()))
end = time.monotonic() + seconds
while time.monotonic() < end and not got and not (folder / "end").exists():
    time.sleep(0.02)
if got:
    time.sleep(0.6)  # a checkpoint
    sys.exit(128 + got[0])
(folder / "summary.json").write_text(json.dumps({"status": "finished", "versions": {}}))
"""


@pytest.fixture(autouse=True)
def _heeded() -> Iterator[None]:
    """Who starts tests in the background of a shell has them ignore a Ctrl-C."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Sleeping(Cell):
    """A run that does nothing for a while."""

    seconds: float = 0.1

    def command(self, *, in_cluster: bool) -> list[str]:
        return [sys.executable, "-c", RUN, str(self.folder), str(self.seconds)]


@pytest.fixture
def new_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sleeping]:
    monkeypatch.setenv("FLEETUNE_RUNS", str(tmp_path / "runs"))

    def make(name: str, seconds: float = 0.1) -> Sleeping:
        config = load_config("deploy/configs/smoke.yaml", [f"name={name}"])
        return Sleeping("arm", config, (), seconds)

    return make


def runner_in(tmp_path: Path, jobs: int = 1, **changed: Any) -> Runner:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    options: dict[str, Any] = {"after_each": lambda: None, **changed}
    return Runner(tmp_path, jobs=jobs, in_cluster=False, lock=lock, **options)


def signals_of(cell: Cell) -> list[int]:
    path = cell.folder / "signals"
    return json.loads(path.read_text()) if path.exists() else []


def signal_when(
    is_time: Callable[[], bool], number: int, then: Callable[[], object] = lambda: None
) -> None:
    """Sends this process a signal, as a terminal does."""

    def wait() -> None:
        while not is_time():
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        then()

    threading.Thread(target=wait, daemon=True).start()


def wait_for_begin(*cells: Cell) -> None:
    deadline = time.monotonic() + 60
    while not all((cell.folder / "begun").exists() for cell in cells):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def end(*cells: Cell) -> None:
    for cell in cells:
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "end").touch()


def test_as_many_run_at_a_time_as_asked(
    tmp_path: Path, new_cell: Callable[..., Sleeping], caplog: pytest.LogCaptureFixture
) -> None:
    cells = [new_cell(f"run-{n}", 600) for n in range(3)]
    seen: list[bool] = []

    def watch() -> None:
        try:
            wait_for_begin(*cells[:2])
            seen.append("run 3 of 3" in caplog.text)
            end(cells[0])
            wait_for_begin(cells[2])
            seen.append(cells[1].summary is not None)
        finally:
            end(*cells)

    watching = threading.Thread(target=watch)
    watching.start()
    with caplog.at_level(logging.INFO):
        runner_in(tmp_path, jobs=2).run(cells, [])
    watching.join()
    assert seen == [False, False]
    assert all(cell.summary for cell in cells)
    assert (tmp_path / "logs" / "run-0.log").exists()


def test_one_signal_reaches_every_run_once_and_ends_the_study(
    tmp_path: Path, new_cell: Callable[..., Sleeping]
) -> None:
    cells = [new_cell("a", 60), new_cell("b", 60), new_cell("never")]
    signal_when(lambda: all((cell.folder / "begun").exists() for cell in cells[:2]), signal.SIGINT)
    runner = runner_in(tmp_path, jobs=2)
    runner.run(cells, [])
    assert runner.stopped == 130
    assert [signals_of(cell) for cell in cells] == [[signal.SIGINT], [signal.SIGINT], []]
    assert not cells[2].folder.exists()


def test_a_signal_while_a_run_is_started_reaches_it_once(
    tmp_path: Path, new_cell: Callable[..., Sleeping], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = new_cell("a", 60)

    def interrupted(*args: Any, **options: Any) -> Any:
        child = start_child(*args, **options)
        wait_for_begin(cell)
        os.kill(os.getpid(), signal.SIGINT)
        return child

    monkeypatch.setattr("deploy.study.runner.start_child", interrupted)
    runner = runner_in(tmp_path)
    runner.run([cell], [])
    assert (runner.stopped, signals_of(cell)) == (130, [signal.SIGINT])


def test_a_signal_between_two_runs_begins_no_other(
    tmp_path: Path, new_cell: Callable[..., Sleeping]
) -> None:
    cells = [new_cell("first"), new_cell("never")]
    runner = runner_in(tmp_path, after_each=lambda: os.kill(os.getpid(), signal.SIGTERM))
    runner.run(cells, [])
    assert runner.stopped == 143
    assert (cells[0].summary is not None, cells[1].folder.exists()) == (True, False)


def test_a_run_that_is_ended_from_elsewhere_ends_the_study(
    tmp_path: Path, new_cell: Callable[..., Sleeping]
) -> None:
    @dataclass(frozen=True)
    class Killed(Sleeping):
        def command(self, *, in_cluster: bool) -> list[str]:
            return [sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]

    first = new_cell("first")
    runner = runner_in(tmp_path)
    runner.run([Killed("arm", first.config, ()), new_cell("never")], [])
    assert runner.stopped == 143


def test_a_run_that_its_limit_of_time_has_ended_is_not_finished_and_ends_no_study(
    tmp_path: Path, new_cell: Callable[..., Sleeping], caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass(frozen=True)
    class Limited(Sleeping):
        def command(self, *, in_cluster: bool) -> list[str]:
            self.folder.mkdir(parents=True)
            told = {"status": "stopped", "reason": "limits.max_wall_s of 9 s is reached"}
            (self.folder / "summary.json").write_text(json.dumps(told))
            return [sys.executable, "-c", ""]

    first, second = new_cell("first"), new_cell("second")
    limited = Limited("arm", first.config, ())
    runner = runner_in(tmp_path)
    runner.run([limited, second], [])
    assert (limited.summary, runner.stopped) == (None, None)
    assert second.summary is not None
    assert "first ended before it was finished: limits.max_wall_s of 9 s" in caplog.text


def test_a_run_that_somebody_stopped_ends_the_study(
    tmp_path: Path, new_cell: Callable[..., Sleeping]
) -> None:
    @dataclass(frozen=True)
    class Stopped(Sleeping):
        def command(self, *, in_cluster: bool) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit(130)"]

    runner = runner_in(tmp_path)
    runner.run([Stopped("arm", new_cell("first").config, ()), new_cell("never")], [])
    assert (runner.stopped, runner.failed) == (130, {"first": 130})


def test_nohup_stays(tmp_path: Path, new_cell: Callable[..., Sleeping]) -> None:
    cell = new_cell("alone", 600)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_when((cell.folder / "begun").exists, signal.SIGHUP, then=lambda: end(cell))
        runner = runner_in(tmp_path)
        runner.run([cell], [])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (runner.stopped, signals_of(cell)) == (None, [])
    assert cell.summary is not None


def test_a_study_that_is_killed_holds_its_place_until_its_runs_have_ended(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from deploy.local_head import start_child
        from deploy.study.runner import locked
        lock = locked(Path(sys.argv[1]))
        end = "import signal, time; signal.signal(15, lambda *_: (time.sleep(1.5), exit(0)));"
        child = start_child(
            [sys.executable, "-c", end + "print('up', flush=True); time.sleep(60)"],
            environ=os.environ, stdout=sys.stdout, keep=[lock],
        )
        child.wait()
        """
    )
    study = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert study.stdout is not None
    assert study.stdout.readline() == "up\n"
    study.kill()
    killed_at = time.monotonic()
    from deploy.study.runner import locked

    os.close(locked(tmp_path))
    assert 1.0 < time.monotonic() - killed_at < 30
    study.wait()
    study.stdout.close()
