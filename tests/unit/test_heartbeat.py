"""Heartbeats: while the work lasts, in spite of errors, and not for ever."""

import threading
import time

import pytest

from buffer.heartbeat import Heartbeat


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
        lambda: beats.append("beat"), every_s=0.02, longest_s=0.1, on_hang=hang, name="sampler-3"
    ):
        assert hung.wait(60)
        time.sleep(0.1)
    assert beats.count("beat") <= 5
    assert (beats.count("hang"), beats[-1]) == (1, "hang")
    assert "sampler-3: at work for more than" in caplog.text


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
