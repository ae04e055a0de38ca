"""A rank that dies or hangs: the others notice, and the learner goes on from its checkpoint."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from deploy.run.ranks import Ranks, RunFailedError
from deploy.settings.run_config import load_config
from tests.services import fleet_world
from tests.services.test_learner_ranks import free_port

PROGRAM = Path(__file__).with_name("lost_rank_program.py")
ROOT = PROGRAM.parents[2]
cluster = fleet_world.cluster


def told_by_rank_0(how: str, timeout_s: float) -> str:
    port = free_port()
    with ExitStack() as running:
        processes = []
        for rank in range(2):
            words = [sys.executable, str(PROGRAM), *map(str, (rank, port, how, timeout_s))]
            process = running.enter_context(
                subprocess.Popen(
                    words,
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            running.callback(process.kill)
            processes.append(process)
        return processes[0].communicate(timeout=280)[0].strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "least_s", "most_s"),
    [("dies", 0, 60), ("hangs", 55, 120), ("hangs-in-step", 55, 120)],
)
def test_a_rank_does_not_wait_for_a_lost_one_beyond_its_deadline(
    how: str, least_s: float, most_s: float
) -> None:
    seconds, _, error = told_by_rank_0(how, 60).partition(" ")
    assert least_s <= float(seconds) < most_s
    assert error


_RAISED = {
    "raises": "Connection closed by peer",
    "loses its GPU": "CUDA error: an illegal memory access was encountered",
    "has no room": "CUDA error: out of memory",
}


@ray.remote(num_cpus=0, max_concurrency=2)
class Rank:
    """Ends as it is told to, or waits, or works, for ever."""

    works = False
    is_silent = False

    def run(self, how: str) -> bool:
        if how == "dies":
            time.sleep(1)
            os._exit(1)
        if how in _RAISED:
            raise RuntimeError(_RAISED[how])
        self.works = how == "works"
        self.is_silent = how == "is silent"
        time.sleep(3600)
        return True

    def report(self) -> dict[str, Any]:
        if self.is_silent:
            time.sleep(3600)
        now_s = time.monotonic() if self.works else 0.0
        return {"rows": [], "cycle": 3, "seconds": {"policy": now_s}}

    def stop(self) -> None:
        """Goes on all the same."""


@ray.remote(num_cpus=0, max_concurrency=2)
class Slow:
    """Needs a moment for every report, and tells of a point only once."""

    def __init__(self) -> None:
        self.rows = [{"step": 1}]

    def run(self) -> bool:
        time.sleep(3600)
        return True

    def report(self) -> dict[str, Any]:
        rows, self.rows = self.rows, []
        time.sleep(2)
        return {"rows": rows, "cycle": 3}


def parts(stall_s: float = 600.0) -> Any:
    return SimpleNamespace(config=SimpleNamespace(limits=SimpleNamespace(stall_s=stall_s)))


@pytest.fixture
def ranks_that(cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ranks]]:
    """The learner's ranks, each of which ends so; a new start is noted in `starts`."""
    made: list[Any] = []

    def make(*ends: str, stall_s: float = 600.0) -> Ranks:
        monkeypatch.setattr("deploy.run.ranks._LEAST_HANG_S", 0.0)
        ranks: Any = Ranks(parts(stall_s), None)
        kind: Any = Rank
        ranks._actors = [kind.remote() for _ in ends]
        made.extend(ranks._actors)
        ranks._running = [a.run.remote(how) for a, how in zip(ranks._actors, ends, strict=True)]
        ranks.starts = []
        monkeypatch.setattr(ranks, "start", lambda *, resume: ranks.starts.append(resume))
        return ranks

    yield make
    for actor in made:
        ray.kill(actor)


def watched(ranks: Any) -> None:
    """Until the ranks are started again."""
    deadline = time.monotonic() + 120
    while not ranks.starts:
        assert time.monotonic() < deadline
        assert ranks.poll() is None
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.parametrize(
    "ends",
    [
        ("raises", "dies"),
        ("dies", "raises"),
        ("waits", "dies"),
        ("loses its GPU",),
        ("raises", "loses its GPU"),
    ],
)
def test_the_ranks_of_a_dead_one_begin_again_whatever_they_say_of_it(
    ends: tuple[str, ...], ranks_that: Callable[..., Any]
) -> None:
    ranks = ranks_that(*ends)
    watched(ranks)
    assert ranks.starts == [True]


@pytest.mark.ray
def test_an_error_of_a_rank_whose_siblings_live_ends_the_run(
    ranks_that: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.run.ranks._NOTICED_S", 1.0)
    ranks = ranks_that("raises", "waits")
    with pytest.raises(RunFailedError, match="Connection closed"):
        watched(ranks)


@pytest.mark.ray
def test_a_gpu_without_room_ends_the_run_as_it_would_come_again(
    ranks_that: Callable[..., Any],
) -> None:
    with pytest.raises(RunFailedError, match="out of memory"):
        watched(ranks_that("has no room"))


@pytest.mark.ray
@pytest.mark.parametrize(("for_result", "starts"), [(False, []), (True, [True])])
def test_a_rank_that_dies_after_a_stop_is_placed_anew_only_for_what_it_has_to_tell(
    ranks_that: Callable[..., Any], for_result: bool, starts: list[bool]
) -> None:
    ranks = ranks_that("dies")
    ranks.ask_to_stop(for_result=for_result)
    answer, deadline = None, time.monotonic() + 120
    while answer is None and not ranks.starts and time.monotonic() < deadline:
        answer = ranks.poll()
        time.sleep(0.1)
    assert ranks.starts == starts
    assert answer is (None if for_result else False)


@pytest.mark.ray
def test_a_rank_that_hangs_is_placed_anew(ranks_that: Callable[..., Any]) -> None:
    ranks, begun = ranks_that("hangs", stall_s=0.5), time.monotonic()
    watched(ranks)
    assert ranks.starts == [True]
    assert time.monotonic() - begun > 6 * 0.5


@pytest.mark.ray
def test_a_rank_that_says_nothing_is_placed_anew(ranks_that: Callable[..., Any]) -> None:
    ranks, begun = ranks_that("is silent", stall_s=0.5), time.monotonic()
    watched(ranks)
    assert ranks.starts == [True]
    assert time.monotonic() - begun > 2 * 6 * 0.5


def test_a_step_may_take_an_hour_however_short_waits_are() -> None:
    assert Ranks(parts(60.0), None)._hang_s == 3600
    assert Ranks(parts(900.0), None)._hang_s == 5400


@pytest.mark.ray
def test_a_rank_that_works_is_left_alone_however_long_it_takes(
    ranks_that: Callable[..., Any],
) -> None:
    ranks = ranks_that("works", stall_s=0.5)
    begun = time.monotonic()
    while time.monotonic() - begun < 3 * 6 * 0.5:
        assert ranks.poll() is None
        time.sleep(0.1)
    assert ranks.starts == []


@pytest.mark.ray
def test_a_rank_that_hangs_after_a_stop_is_waited_for_no_longer(
    ranks_that: Callable[..., Any],
) -> None:
    ranks = ranks_that("hangs", stall_s=0.01)
    ranks.ask_to_stop()
    assert eventually_not_none(ranks) is False


def eventually_not_none(ranks: Any) -> bool | None:
    deadline = time.monotonic() + 60
    while (answer := ranks.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer


@pytest.mark.ray
def test_a_report_that_is_late_is_not_waited_for_and_not_lost(cluster: None) -> None:
    ranks: Any = Ranks(parts(), None)
    kind: Any = Slow
    ranks._actors = [kind.remote()]
    ranks._running = [ranks._actors[0].run.remote()]
    rows: list[dict[str, Any]] = []
    longest_s, deadline = 0.0, time.monotonic() + 120
    while not rows and time.monotonic() < deadline:
        begun = time.monotonic()
        assert ranks.poll() is None
        longest_s = max(longest_s, time.monotonic() - begun)
        rows += ranks.rows()
        time.sleep(0.1)
    ray.kill(ranks._actors[0])
    assert rows == [{"step": 1}]
    assert longest_s < 1.5


@pytest.fixture
def placeless(cluster: None) -> Iterator[Callable[[float], Ranks]]:
    """The ranks of a learner that asks for more than the cluster has, for so many seconds."""
    made: list[Ranks] = []

    def make(stall_s: float) -> Ranks:
        values = ["name=placeless", "learner.num_cpus=999"]
        config = load_config("deploy/configs/smoke.yaml", values)
        limits = config.limits.model_copy(update={"stall_s": stall_s})
        plan: Any = SimpleNamespace(config=config.model_copy(update={"limits": limits}))
        made.append(Ranks(plan, None))
        return made[-1]

    yield make
    for ranks in made:
        ranks.kill()


@pytest.mark.ray
def test_who_watches_does_not_wait_for_the_place_of_a_rank(
    placeless: Callable[[float], Ranks],
) -> None:
    ranks, begun = placeless(600), time.monotonic()
    ranks.start(resume=True)
    assert [ranks.poll() for _ in range(3)] == [None] * 3
    assert time.monotonic() - begun < 30
    ranks.ask_to_stop(for_result=True)  # which nobody could tell yet
    assert ranks.poll() is None
    with pytest.raises(RunFailedError, match="resume the run"):
        ranks.published()
    ranks.ask_to_stop()
    assert ranks.poll() is False


@pytest.mark.ray
def test_a_rank_that_finds_no_place_ends_the_run_and_says_what_it_asks_for(
    placeless: Callable[[float], Ranks],
) -> None:
    ranks = placeless(2)
    ranks.start(resume=False)
    assert ranks.poll() is None
    time.sleep(2)
    with pytest.raises(
        RunFailedError, match=r"ranks found no place within limits.stall_s of 2 s.*999 CPUs"
    ):
        ranks.poll()
