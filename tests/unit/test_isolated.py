"""A reward in a child process: its scores, and all that a child can do instead of scoring."""

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from reward_servers import isolated_worker
from reward_servers.base import Failure, checked_scores
from reward_servers.isolated import Isolated
from reward_servers.isolated_worker import FrameError, read_frame, write_frame
from reward_servers.jpeg import JpegSize
from reward_servers.metadata import informed
from reward_servers.registry import build_reward, check_reward

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3)).astype(np.uint8)
MEANS = IMAGES.mean(axis=(1, 2, 3))
MEAN = "tests.isolated_rewards:Mean"


@pytest.fixture(scope="module")
def shared() -> Iterator[Isolated]:
    """One child for tests that leave it alive."""
    reward = Isolated(sys.executable, MEAN, {"greeting": "hello"})
    yield reward
    reward.close()


def reasons(reward: Isolated, prompt: str) -> set[str]:
    outcomes = checked_scores(reward, IMAGES, [prompt] * 3)
    assert all(isinstance(each, Failure) for each in outcomes), outcomes
    return {each.reason for each in outcomes if isinstance(each, Failure)}


def means(reward: Isolated, prompt: str = "") -> None:
    assert checked_scores(reward, IMAGES, [prompt] * 3) == pytest.approx(MEANS)


def test_scores_are_those_of_the_class(shared: Isolated) -> None:
    means(shared)
    means(shared, "ünïcode ✓")


def test_metadata_reach_a_class_that_asks_for_them() -> None:
    prompts = ["one", "two", "one"]
    table = {"one": {"wanted": 1.0, "tags": ["a"]}, "two": {"wanted": 2.0, "tags": []}}
    reward = Isolated(sys.executable, "tests.isolated_rewards:Wanted")
    try:
        assert checked_scores(informed(reward, table), IMAGES, prompts) == [1.0, 2.0, 1.0]
    finally:
        reward.close()


def test_metadata_are_kept_from_a_class_that_does_not(shared: Isolated) -> None:
    assert informed(shared, {}) is shared


def test_what_a_reward_prints_is_no_answer(shared: Isolated) -> None:
    means(shared, "print")
    means(shared)


def test_a_reward_that_raises_is_a_reason_and_the_child_lives_on(shared: Isolated) -> None:
    child = shared._child
    (reason,) = reasons(shared, "raise")
    assert reason == "RuntimeError: RuntimeError: a bad picture"
    assert "it must return float32 [1]" in reasons(shared, "shape").pop()
    means(shared)
    assert shared._child is child


def test_a_child_sees_its_threads_and_no_other_package_of_ours(shared: Isolated) -> None:
    assert checked_scores(shared, IMAGES[:1], ["threads"]) == [1.0]
    assert checked_scores(shared, IMAGES[:1], ["path"]) == [0.0]


def test_a_child_that_dies_is_told_of_and_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "reward_servers.isolated")
    reward = Isolated(sys.executable, MEAN)
    (reason,) = reasons(reward, "die")
    assert reason.startswith("the process ended with status 9")
    assert "out of memory, said the library" in reason
    assert "Mean: out of memory, said the library" in caplog.text
    means(reward)
    os.kill(reward._child._process.pid, signal.SIGKILL)
    reward._child._process.wait()
    means(reward)
    reward.close()


def test_a_child_that_hangs_is_ended_at_the_deadline() -> None:
    reward = Isolated(sys.executable, MEAN, timeout_s=1.5)
    child = reward._child
    began = time.monotonic()
    assert reasons(reward, "hang") == {"no answer within 1.5 s"}
    assert time.monotonic() - began < 10
    assert not child.lives
    reward.close()


def test_a_reason_of_a_row_comes_through() -> None:
    reward = Isolated(sys.executable, "tests.isolated_rewards:Partial")
    assert checked_scores(reward, IMAGES, ["a"] * 3) == [0.0, Failure("not this one"), 0.0]
    reward.close()


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"python": "/nowhere/bin/python"}, "no Python at '/nowhere/bin/python'"),
        ({"kind": "not_installed_there:X"}, "No module named 'not_installed_there'"),
        pytest.param({"kind": "tests.isolated_rewards:Nothing"}, "Nothing", marks=pytest.mark.slow),
        pytest.param(
            {"kind": "tests.isolated_rewards:NoScore"}, "no method score", marks=pytest.mark.slow
        ),
        ({"kind": "jpeg-sise"}, "unknown reward 'jpeg-sise'"),
        ({"kind": "jpeg-size", "args": {"qualty": 1}}, "unexpected keyword argument 'qualty'"),
        ({"args": {"greeting": "refuse"}}, r"ValueError: no weights at /nowhere\.pt"),
        ({"timeout_s": 0}, "each must be above 0"),
    ],
)
def test_a_check_finds_what_would_fail(args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_reward("isolated", {"python": sys.executable, "kind": MEAN, **args})


@pytest.mark.slow
def test_a_shipped_kind_runs_there_too() -> None:
    args = {"python": sys.executable, "kind": "jpeg-size", "args": {"quality": 50}}
    check_reward("isolated", args)
    reward: Any = build_reward("isolated", args)
    expected = JpegSize(50).score(IMAGES, ["", "", ""])
    assert checked_scores(reward, IMAGES, ["", "", ""]) == pytest.approx(expected)
    reward.close()


def test_a_reward_that_cannot_be_made_says_why() -> None:
    with pytest.raises(ValueError, match=r"FileNotFoundError: no weights at /nowhere\.pt"):
        Isolated(sys.executable, MEAN, {"greeting": "refuse"})


def test_a_python_without_the_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="the process ended with status 0"):
        Isolated("true", MEAN)
    # It prints the program, and may end before it was greeted.
    with pytest.raises(ValueError, match=r"not of a frame|the process ended"):
        Isolated("cat", MEAN)


@pytest.mark.slow
def test_a_child_ends_with_whoever_started_it() -> None:
    """Its standard input closes, even while the model hangs."""
    program = (
        "import numpy as np, threading, time\n"
        "from reward_servers.isolated import Isolated\n"
        "import sys\n"
        f"r = Isolated(sys.executable, {MEAN!r})\n"
        "images = np.zeros((1, 2, 2, 3), np.uint8)\n"
        "threading.Thread(target=r.score, args=(images, ['hang']), daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print(r._child._process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def frame(message: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    write_frame(out, message, 1000)
    return out.getvalue()


def test_a_frame_is_read_as_it_was_written() -> None:
    stream = io.BytesIO(frame({"a": [1, b"x"]}) + frame({}))
    assert [read_frame(stream, 1000) for _ in range(3)] == [{"a": [1, b"x"]}, {}, None]


SOUND = frame({"scores": [1.0]})


CUT = [SOUND[:3], SOUND[:-1]]
FOREIGN = [
    b"HTTP/1.1",
    b"RWD1\xff\xff\xff\xff",
    b"RWD1\0\0\0\1\xc1",
    b"RWD1\0\0\0\1\1",
    b"RWD1\0\0\0\0",
]


@pytest.mark.parametrize("sent", [*CUT, *FOREIGN])
def test_what_is_no_frame_is_one_error(sent: bytes) -> None:
    with pytest.raises(FrameError):
        read_frame(io.BytesIO(sent), 1000)


def test_a_frame_above_the_bound_is_not_sent() -> None:
    with pytest.raises(FrameError, match="at most 1000"):
        frame({"images": bytes(1000)})


def test_pictures_above_the_bound_are_refused(
    shared: Isolated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_servers.isolated.MAX_REQUEST_BYTES", 2 * IMAGES[0].nbytes)
    assert IMAGES.nbytes < isolated_worker.MAX_REQUEST_BYTES
    means(shared)  # picture by picture
