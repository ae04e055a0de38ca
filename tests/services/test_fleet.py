"""The sampler fleet under a real local Ray."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from actors.fleet import Fleet, FleetGaveUpError, FleetSettings
from actors.host import BoardWeights, Worker
from learner.policy.board import PolicyBoard
from tests.services import fleet_world
from tests.services.fleet_world import FAST, Waiting

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
cluster = fleet_world.cluster


def build_nothing(owner: str) -> Worker:
    raise OSError("no such weights")


def build_the_first_alone(owner: str) -> Worker:
    if owner.startswith("sampler-0."):
        return Waiting(owner)
    raise OSError("CUDA error: device not ready")


@pytest.fixture
def new_fleet() -> Iterator[Callable[..., Fleet]]:
    """Makes fleets, and ends them after the test."""
    made: list[Fleet] = []

    def make(build: Callable[[str], Worker] = Waiting, settings: FleetSettings = FAST) -> Fleet:
        options = {"num_cpus": 0}
        made.append(Fleet(build, name="sampler", actor_options=options, settings=settings))
        return made[-1]

    yield make
    for fleet in made:
        fleet.stop()


def eventually(condition: Callable[[], bool], fleet: Fleet) -> None:
    fleet_world.eventually(condition, fleet.ensure_alive)


def owners(fleet: Fleet) -> list[str]:
    """Of the samplers that are built."""
    return sorted(str(stats["owner"]) for stats in fleet.stats().values() if "built" in stats)


def exists(name: str) -> bool:
    try:
        ray.get_actor(name)
    except ValueError:
        return False
    return True


def test_samplers_are_named_and_numbered(new_fleet: Callable[..., Fleet]) -> None:
    fleet = new_fleet()
    fleet.start(2)
    assert sorted(fleet.stats()) == ["sampler-0", "sampler-1"]


def test_stats_answer_while_samplers_run(new_fleet: Callable[..., Fleet]) -> None:
    fleet = new_fleet()
    fleet.start(1)
    eventually(lambda: owners(fleet) == ["sampler-0.0"], fleet)
    assert owners(fleet) == ["sampler-0.0"]


def test_a_sampler_that_died_is_replaced_under_another_owner(
    new_fleet: Callable[..., Fleet],
) -> None:
    fleet = new_fleet()
    fleet.start(2)
    eventually(lambda: owners(fleet) == ["sampler-0.0", "sampler-1.1"], fleet)
    ray.kill(ray.get_actor("sampler-0"))
    eventually(lambda: owners(fleet) == ["sampler-0.2", "sampler-1.1"], fleet)


def test_scaling_down_drains_the_highest_numbers(
    new_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = new_fleet(lambda owner: Waiting(owner, tmp_path, leaving_s=0.3))
    fleet.start(2)
    eventually(lambda: len(owners(fleet)) == 2, fleet)
    fleet.scale(1)
    eventually(lambda: not exists("sampler-1"), fleet)
    assert [mark.name for mark in tmp_path.iterdir()] == ["sampler-1.1"]


def test_scaling_up_while_a_sampler_of_that_name_drains_waits_for_the_name(
    new_fleet: Callable[..., Fleet],
) -> None:
    fleet = new_fleet(lambda owner: Waiting(owner, leaving_s=0.5))
    fleet.start(2)
    eventually(lambda: len(owners(fleet)) == 2, fleet)
    fleet.scale(1)
    fleet.scale(2)
    eventually(lambda: len(owners(fleet)) == 2, fleet)
    assert owners(fleet) == ["sampler-0.0", "sampler-1.2"]


def test_a_sampler_that_does_not_drain_in_time_is_killed(
    new_fleet: Callable[..., Fleet], caplog: pytest.LogCaptureFixture
) -> None:
    settings = FleetSettings(drain_s=0.2, stats_timeout_s=30)
    fleet = new_fleet(lambda owner: Waiting(owner, leaving_s=60), settings)
    fleet.start(1)
    eventually(lambda: owners(fleet) == ["sampler-0.0"], fleet)
    fleet.stop()
    assert "sampler-0 did not end in time and is killed" in caplog.text


def test_work_makes_a_sampler_healthy_and_waiting_for_a_place_does_not(
    new_fleet: Callable[..., Fleet],
) -> None:
    fleet = new_fleet(Waiting, FleetSettings(healthy_s=0.5, backoff_s=0.1, stats_timeout_s=30))
    fleet.start(1)
    for life in range(3):
        eventually(lambda life=life: owners(fleet) == [f"sampler-0.{life}"], fleet)
        time.sleep(0.6)
        ray.kill(ray.get_actor("sampler-0"))
    eventually(lambda: owners(fleet) == ["sampler-0.3"], fleet)
    (slot,) = fleet._slots
    assert slot.failures == 1


def test_stopping_lets_every_sampler_finish(
    new_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    fleet = new_fleet(lambda owner: Waiting(owner, tmp_path, leaving_s=0.3))
    fleet.start(2)
    eventually(lambda: len(owners(fleet)) == 2, fleet)
    fleet.stop()
    assert sorted(mark.name for mark in tmp_path.iterdir()) == ["sampler-0.0", "sampler-1.1"]


def test_a_sampler_that_cannot_be_built_ends_the_fleet_with_its_reason(
    new_fleet: Callable[..., Fleet],
) -> None:
    fleet = new_fleet(build_nothing)
    fleet.start(1)
    with pytest.raises(FleetGaveUpError, match=r"sampler-0 ended 2 times .*no such weights"):
        eventually(lambda: False, fleet)


def test_one_that_cannot_be_built_where_it_is_put_does_not_end_others_at_work(
    new_fleet: Callable[..., Fleet],
) -> None:
    settings = FleetSettings(
        healthy_s=0.5, max_failures=1, backoff_s=0.1, max_backoff_s=0.2, stats_timeout_s=30
    )
    fleet = new_fleet(build_the_first_alone, settings)
    fleet.start(1)
    eventually(lambda: owners(fleet) == ["sampler-0.0"], fleet)
    time.sleep(0.6)
    fleet.scale(2)
    eventually(lambda: fleet._slots[1].failures > 3, fleet)
    assert owners(fleet) == ["sampler-0.0"]
    fleet.scale(1)


def test_one_that_hangs_while_it_is_built_is_replaced(
    new_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    def build(owner: str) -> Worker:
        if not (tmp_path / "mended").exists():
            time.sleep(600)
        return Waiting(owner)

    fleet = new_fleet(build, FleetSettings(build_s=1.0, backoff_s=0.1, stats_timeout_s=30))
    fleet.start(1)
    eventually(lambda: fleet.glance()["sampler-0"].state == "building", fleet)
    (tmp_path / "mended").touch()
    eventually(lambda: owners(fleet) == ["sampler-0.1"], fleet)
    assert [end.why for end in fleet.ends()] == ["ended, 1 in a row: it was not built within 1 s"]


def test_a_fleet_of_none_is_refused(new_fleet: Callable[..., Fleet]) -> None:
    with pytest.raises(ValueError, match="start at least 1"):
        new_fleet().start(0)


def test_weights_come_through_the_board_and_the_object_store() -> None:
    board = ray.remote(PolicyBoard).options(num_cpus=0).remote()
    parts = {"a": np.ones(3, np.float32)}, {"b": np.zeros((2, 2), np.float32)}
    ray.get(board.publish.remote(4, [ray.put(part) for part in parts]))
    weights = BoardWeights(board)
    version, fetched = weights.fetch(weights.latest()[0])
    assert (version, sorted(fetched), fetched["b"].shape) == (4, ["a", "b"], (2, 2))


def test_the_fleet_is_light_to_import() -> None:
    code = "import sys, actors.fleet, actors.host; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120).returncode == 0


def test_weights_that_do_not_come_in_time_are_named() -> None:
    @ray.remote(num_cpus=0)
    def never() -> None:
        time.sleep(60)

    board = ray.remote(PolicyBoard).options(num_cpus=0).remote()
    ray.get(board.publish.remote(4, [never.remote()]))
    with pytest.raises(TimeoutError, match=r"weights of policy version 4 did not come within 0\.5"):
        BoardWeights(board, timeout_s=0.5).fetch(4)


def test_an_actor_that_ended_is_told_once_with_its_reason(
    new_fleet: Callable[..., Fleet],
) -> None:
    fleet = new_fleet(settings=FleetSettings(backoff_s=0.1))
    fleet.start(1)
    eventually(lambda: owners(fleet) == ["sampler-0.0"], fleet)
    ray.kill(ray.get_actor("sampler-0"))
    eventually(lambda: owners(fleet) == ["sampler-0.1"], fleet)
    [end] = fleet.ends()
    assert end.actor == "sampler-0"
    assert end.why.startswith("ended, 1 in a row: ActorDiedError: The actor is dead because")
    assert "\n" not in end.why
    assert fleet.ends() == []
