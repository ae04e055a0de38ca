"""Heartbeats: while the work lasts, in spite of errors, and not for ever."""

import threading
import time
from collections.abc import Callable

import pytest

from buffer.heartbeat import Heartbeat, Watch


def test_it_beats_while_the_work_lasts_and_no_longer() -> None:
    beats = threading.Semaphore(0)
    with Heartbeat(beats.release, every_s=0.01, longest_s=600):
        assert all(beats.acquire(timeout=60) for _ in range(5))
    while beats.acquire(blocking=False):
        """Until none is left of those that came while the work lasted."""
    assert not beats.acquire(timeout=0.1)


def test_short_work_needs_no_beat() -> None:
    beats: list[None] = []
    with Heartbeat(lambda: beats.append(None), every_s=5, longest_s=60):
        pass
    assert beats == []


def test_an_error_does_not_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    beats = threading.Semaphore(0)

    def renew() -> None:
        beats.release()
        raise ConnectionError("redis is away")

    with Heartbeat(renew, every_s=0.01, longest_s=60, name="reward-0"):
        assert all(beats.acquire(timeout=10) for _ in range(3))
    assert "reward-0: leases not renewed" in caplog.text


def test_work_that_hangs_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    beats: list[str] = []
    hung = threading.Event()

    def hang() -> None:
        beats.append("hang")
        hung.set()

    with Heartbeat(
        lambda: beats.append("beat"),
        every_s=0.02,
        longest_s=0.1,
        on_hang=hang,
        name="sampler-3",
        advice="raise it",
    ):
        assert hung.wait(60)
        time.sleep(0.1)
    assert beats.count("beat") <= 5
    assert (beats.count("hang"), beats[-1]) == (1, "hang")
    (told,) = caplog.records
    assert told.levelname == "ERROR"
    assert told.message.startswith("sampler-3: at work for more than 0.1 s")
    assert told.message.endswith(": raise it")


def test_an_error_of_the_work_goes_through() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Heartbeat(lambda: None, every_s=0.01, longest_s=1),
    ):
        _ = 1 / 0


@pytest.mark.parametrize(("every_s", "longest_s"), [(0, 1), (2, 1), (-1, 1)])
def test_a_beat_that_never_comes_is_refused(every_s: float, longest_s: float) -> None:
    with pytest.raises(ValueError, match="must beat"):
        Heartbeat(lambda: None, every_s=every_s, longest_s=longest_s)


def watch(on_hang: Callable[[], object]) -> Watch:
    return Watch(hold_s=0.2, every_s=0.02, on_hang=on_hang, name="reward-0")


def seconds_to_hang(watch: Watch, hung: threading.Event) -> float:
    hung.clear()
    begun = time.monotonic()
    with watch.working():
        assert hung.wait(60)
    return time.monotonic() - begun


def test_the_first_work_may_take_four_times_as_long(caplog: pytest.LogCaptureFixture) -> None:
    hung = threading.Event()
    watched = watch(hung.set)
    assert seconds_to_hang(watched, hung) > 0.8
    watched.has_worked()
    assert seconds_to_hang(watched, hung) > 0.2
    assert ["0.8 s" in caplog.messages[0], "0.2 s" in caplog.messages[1]] == [True, True]


def test_what_waits_besides_its_work_is_renewed_for_longer() -> None:
    hung, beats = threading.Event(), threading.Semaphore(0)
    watched = watch(hung.set)
    watched.has_worked()
    with watched.holding(beats.release, wait_s=60):
        time.sleep(0.4)
    assert not hung.is_set()
    assert beats.acquire(timeout=1)


def test_what_is_held_is_renewed_no_more_once_the_work_hangs() -> None:
    hung, beats = threading.Event(), []
    watched = watch(hung.set)
    with watched.holding(lambda: beats.append(None), wait_s=60):
        with watched.working():
            assert hung.wait(60)
        known = len(beats)
        time.sleep(0.1)
    assert len(beats) <= known + 1  # one may have been under way
