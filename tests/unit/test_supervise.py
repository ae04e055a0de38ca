"""What a supervisor makes of a learner that is to stop, or that failed for want of samplers."""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actors.fleet import FleetGaveUpError
from actors.slot import Seen
from buffer.errors import ReplayUnavailable
from buffer.records import Counters
from deploy.fleet.fleets import Fleets
from deploy.profile import Profile
from deploy.run.curves import Curves, read_points
from deploy.run.ranks import RunFailedError
from deploy.run.stop import Stop
from deploy.run.supervise import Supervisor
from deploy.settings.run_config import load_config

NOTHING_YET = Counters(**dict.fromkeys([each.name for each in dataclasses.fields(Counters)], 0))


class Silent:
    """Whoever is told of a run, and says nothing."""

    evaluates = False

    def rows(self) -> list[dict[str, Any]]:
        return []

    def counters(self) -> Counters:
        return NOTHING_YET

    def tell(self, *_: object) -> None:
        """Nothing."""

    look = points = show_memory = show_counters = show_page = show_learner = tell
    write = show_curve = tell


class BusyRanks(Silent):
    """Train until they are asked to stop, and some time after."""

    def __init__(self, *, stops_after_s: float) -> None:
        self.last: dict[str, Any] = {}
        self.asked: list[float] = []
        self._stops_after_s = stops_after_s

    def poll(self) -> bool | None:
        done = self.asked and time.monotonic() - self.asked[0] > self._stops_after_s
        return False if done else None

    def ask_to_stop(self) -> None:
        self.asked.append(time.monotonic())

    ensure_published = Silent.tell


class SavingRanks(BusyRanks):
    """Write a checkpoint once they are asked to stop; then their rows are told."""

    def __init__(self) -> None:
        super().__init__(stops_after_s=0.5)
        self.polls = 0
        self.saved = False

    def poll(self) -> bool | None:
        self.polls += 1
        self.saved = super().poll() is not None
        return False if self.saved else None

    def rows(self) -> list[dict[str, Any]]:
        return [{"step": self.polls, "phase": "cycle", "values": {"reward": 0.5}}]


class FleetsThatGiveUp(Silent):
    """Cannot keep a sampler alive, after some looks."""

    looks = 0

    def look(self, *_: object) -> None:
        self.looks += 1
        if self.looks > 2:
            raise FleetGaveUpError("sampler-0 ended 6 times in a row")


class Stalled(BusyRanks):
    """Have waited in vain."""

    def poll(self) -> bool | None:
        raise RunFailedError("StallError: no record was scored for 600 s.")


class Samplers:
    """A fleet whose actors are as they are told to be."""

    def __init__(self, *states: Any) -> None:
        self._states = states

    def glance(self) -> dict[str, Seen]:
        return {f"sampler-{i}": Seen(state, {}) for i, state in enumerate(self._states)}


def supervisor(folder: Path, ranks: BusyRanks, fleets: Any, stop: Stop, *overrides: str) -> Any:
    silent: Any = Silent()
    given: Any = ranks
    return Supervisor(
        load_config("deploy/configs/smoke.yaml", list(overrides)),
        ranks=given,
        fleets=fleets,
        replay=silent,
        monitor=silent,
        stopping=threading.Event(),
        stop=stop,
        metrics=silent,
        profile=Profile(folder),
        callbacks=silent,
    )


def limited(max_wall_s: float, stall_s: float) -> Stop:
    limits = load_config(
        "deploy/configs/smoke.yaml", [f"limits.max_wall_s={max_wall_s}"]
    ).limits.model_copy(update={"stall_s": stall_s})
    return Stop(limits, patience_s=0.1, begun=time.monotonic())


def test_at_its_limit_a_run_lets_a_busy_learner_come_to_its_checkpoint(tmp_path: Path) -> None:
    ranks, stop = BusyRanks(stops_after_s=2.0), limited(0.2, stall_s=60)
    begun = time.monotonic()
    assert not supervisor(tmp_path, ranks, Silent(), stop).watch(Silent())
    assert len(ranks.asked) == 1
    assert time.monotonic() - begun > 2.0
    assert stop.is_by_limit


def test_a_learner_that_does_not_heed_a_limit_is_left_in_the_end(tmp_path: Path) -> None:
    ranks, stop = BusyRanks(stops_after_s=300), limited(0.2, stall_s=1.0)
    assert not supervisor(tmp_path, ranks, Silent(), stop).watch(Silent())
    assert 1.0 < time.monotonic() - ranks.asked[0] < 30


@pytest.mark.parametrize(
    ("states", "is_told"),
    [
        (["placing", "placing"], True),
        (["placing", "working"], False),
        (["building"], False),
        ([], False),
    ],
)
def test_a_run_that_stalled_for_want_of_samplers_says_so(
    states: list[str], is_told: bool, tmp_path: Path
) -> None:
    samplers: Any = Samplers(*states)
    fleets = Fleets({"samplers": samplers}, desk=None, folder=tmp_path)
    watched = supervisor(tmp_path, Stalled(stops_after_s=0), fleets, limited(60, stall_s=60))
    with pytest.raises(RunFailedError, match="no record was scored") as raised:
        watched.watch(Silent())
    assert ("No sampler has a place in the cluster" in str(raised.value)) == is_told


def test_a_fleet_that_gives_up_has_the_learner_save_itself_before_it_is_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranks, stop = SavingRanks(), limited(600, stall_s=60)
    with pytest.raises(FleetGaveUpError, match="ended 6 times"):
        supervisor(tmp_path, ranks, FleetsThatGiveUp(), stop).watch(Silent())
    assert (len(ranks.asked), ranks.saved) == (1, True)
    assert not stop.is_by_limit
    assert "its learner is asked to stop" in caplog.text


def test_a_learner_that_does_not_heed_a_failure_is_left_in_the_end(tmp_path: Path) -> None:
    ranks, stop = BusyRanks(stops_after_s=300), limited(600, stall_s=1.0)
    with pytest.raises(FleetGaveUpError):
        supervisor(tmp_path, ranks, FleetsThatGiveUp(), stop).watch(Silent())
    assert 1.0 < time.monotonic() - ranks.asked[0] < 30


def test_a_learner_that_fails_while_it_is_to_save_itself_hides_no_error(tmp_path: Path) -> None:
    class FailsWhenAsked(BusyRanks):
        def poll(self) -> bool | None:
            if self.asked:
                raise RunFailedError("ReplayUnavailable")
            return None

    ranks = FailsWhenAsked(stops_after_s=0)
    watched = supervisor(tmp_path, ranks, FleetsThatGiveUp(), limited(600, stall_s=60))
    with pytest.raises(FleetGaveUpError):
        watched.watch(Silent())


def test_an_outage_of_redis_has_the_learner_save_itself(tmp_path: Path) -> None:
    class Away(Silent):
        def counters(self) -> Counters:
            if ranks.polls:
                raise ReplayUnavailable("no answer")
            return NOTHING_YET

    ranks = SavingRanks()
    watched = supervisor(tmp_path, ranks, Silent(), limited(600, stall_s=60), "replay.outage_s=0.1")
    watched._replay = Away()
    with pytest.raises(ReplayUnavailable):
        watched.watch(Silent())
    assert ranks.saved


def test_a_learner_that_failed_is_not_asked_to_stop(tmp_path: Path) -> None:
    samplers: Any = Samplers()
    fleets = Fleets({"samplers": samplers}, desk=None, folder=tmp_path)
    ranks = Stalled(stops_after_s=0)
    with pytest.raises(RunFailedError):
        supervisor(tmp_path, ranks, fleets, limited(60, stall_s=60)).watch(Silent())
    assert ranks.asked == []


def test_a_disk_that_takes_nothing_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Writes to /dev/full fail as on a disk that is full."""

    class Telling(Silent):
        def look(self, *_: object) -> dict[str, Any]:
            fleets._keep("samplers", 1, 2, "more are needed")
            return {"fleets": {}}

    fleets = Fleets({}, desk=None, folder=tmp_path)
    ranks = SavingRanks()
    stop = limited(1.5, stall_s=60)
    with Curves(tmp_path) as curves:
        for name in ("metrics.jsonl", "fleet.jsonl"):
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to("/dev/full")
        (tmp_path / "profile.json.partial").mkdir()
        watched = supervisor(tmp_path, ranks, Telling(), stop)
        watched._profile._written_at = -100.0
        assert not watched.watch(curves)
        assert stop.is_by_limit
        told = [record.message for record in caplog.records]
        for name in ("metrics.jsonl", "fleet.jsonl", "profile.json"):
            assert len([line for line in told if name in line and "goes on without" in line]) == 1
            (tmp_path / name).unlink(missing_ok=True)
    steps = [point.step for point in read_points(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, ranks.polls + 1))
