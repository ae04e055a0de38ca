"""A local run that is asked to stop: the status that it ends with, and how soon."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from deploy.local import StopRequest, run_job
from deploy.local_head import JOB_STOP_WAIT_S, HeadError, start_child

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


class HandHead:
    """A head whose job never ends.

    Args:
        when_starting: called while it starts; it comes up unless it is to stop then.
        when_asked: called when its job is asked to stop.
    """

    url = "http://nowhere"
    is_alive = True
    logs = Path("none")

    def __init__(
        self,
        when_starting: Callable[[], None] = lambda: None,
        when_asked: Callable[[], None] = lambda: None,
    ) -> None:
        self._when_starting = when_starting
        self._when_asked = when_asked
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing was started."""

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> bool:
        self._when_starting()
        return not should_stop()

    def submit_command(self, entrypoint: object, **options: object) -> list[str]:
        send_back = f"import os, time; os.kill({os.getpid()}, {int(signal.SIGTERM)})"
        return [sys.executable, "-c", f"{send_back}; time.sleep(600)"]

    def tail(self) -> str:
        return ""

    def client_environ(self) -> dict[str, str]:
        return dict(os.environ)

    def request(self, method: str, path: str) -> dict[str, Any]:
        self.requests.append(path.rpartition("/")[2])
        self._when_asked()
        return {}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[HandHead], int]]:
    """The status of a local run on a head."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Tests may run under nohup, which a run would heed.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    clients: list[subprocess.Popen[bytes]] = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        clients.append(start_child(*args, **options))
        return clients[-1]

    def status(head: HandHead) -> int:
        monkeypatch.setattr("deploy.local.LocalHead", lambda **_: head)
        monkeypatch.setattr("deploy.local.start_child", start)
        stop = StopRequest()
        stop.listen()
        return run_job(["job"], run="mine", runs=tmp_path, num_cpus=1, stop=stop)

    yield status
    for number, handler in before.items():
        signal.signal(number, handler)
    for client in clients:
        assert client.stdout is not None
        client.stdout.close()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_run_that_is_asked_to_stop_ends_with_the_status_of_the_signal(
    number: int, status: int, run: Callable[[HandHead], int]
) -> None:
    assert run(HandHead(when_starting=send(number))) == status


def test_a_run_that_is_asked_twice_ends_at_once_with_the_status_of_the_first_signal(
    run: Callable[[HandHead], int],
) -> None:
    head, begun = HandHead(when_asked=send(signal.SIGINT)), time.monotonic()
    assert run(head) == 143
    assert time.monotonic() - begun < JOB_STOP_WAIT_S
    assert head.requests == ["stop"]


class TalkingHead(HandHead):
    """A head whose job's log ends at once, and what it tells when it is asked about the job."""

    def __init__(self, *answers: dict[str, Any] | HeadError) -> None:
        super().__init__()
        self._answers = list(answers)

    def submit_command(self, entrypoint: object, **options: object) -> list[str]:
        return [sys.executable, "-c", ""]

    def request(self, method: str, path: str) -> dict[str, Any]:
        super().request(method, path)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, HeadError):
            raise answer
        return answer


RUNNING = {"status": "RUNNING"}
SUCCEEDED = {"status": "SUCCEEDED", "driver_exit_code": 0}


def no_such_job() -> HeadError:
    error = HeadError("HTTP Error 404: Not Found")
    error.status = 404
    return error


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ((RUNNING, RUNNING, SUCCEEDED), 0),
        ((RUNNING, HeadError("timed out"), {"status": "FAILED", "driver_exit_code": 7}), 7),
        (({"status": "STOPPED", "driver_exit_code": None},), 130),
        ((no_such_job(),), 1),
    ],
)
def test_a_job_is_waited_for_when_its_log_has_ended(
    answers: tuple[dict[str, Any] | HeadError, ...],
    status: int,
    run: Callable[[HandHead], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deploy.local._LOOK_S", 0.0)
    assert run(TalkingHead(*answers)) == status


def test_a_stop_that_ray_does_not_answer_is_asked_for_again(
    run: Callable[[HandHead], int],
) -> None:
    def unanswered_once() -> None:
        if len(head.requests) == 1:
            raise HeadError("timed out")
        os.kill(os.getpid(), signal.SIGINT)

    head = HandHead(when_asked=unanswered_once)
    assert (run(head), head.requests) == (143, ["stop", "stop"])


def test_nohup_stays() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopRequest().listen()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
