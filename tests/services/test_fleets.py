"""A run's fleets under a real local Ray: wishes at the desk, decisions, pages."""

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from actors.fleet import Fleet
from actors.host import Worker
from deploy.fleet.command import rendered
from deploy.fleet.desk import FleetDesk
from deploy.fleet.fleets import Fleets
from deploy.run.files import DECISIONS_FILE
from tests.services import fleet_world
from tests.services.fleet_world import FAST, Waiting, eventually

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
cluster = fleet_world.cluster


class Counting(Waiting):
    """Counts an image more at every look."""

    images = 0

    def stats(self) -> dict[str, float | str]:
        self.images += 1
        return {"owner": self.owner, "images": self.images, "wait_s": 1.0, "sample_s": 3.0}


class Busy(Waiting):
    """Has worked all the time since it was made."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.made = time.monotonic()

    def stats(self) -> dict[str, float | str]:
        return {"owner": self.owner, "wait_s": 0.0, "sample_s": time.monotonic() - self.made}


@pytest.fixture
def desk() -> Iterator[Any]:
    actor = ray.remote(FleetDesk).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


@pytest.fixture
def new_fleets(desk: Any, tmp_path: Path) -> Iterator[Callable[..., Fleets]]:
    made: list[Fleet] = []

    def make(
        build: Callable[[str], Worker] = Counting,
        measured_s: float = 30.0,
        useful: int | None = None,
        **options: float,
    ) -> Fleets:
        options = {"num_cpus": 0, **options}
        fleets = {
            role: Fleet(build, name=role, actor_options=options, settings=FAST)
            for role in ("samplers", "rewards")
        }
        made.extend(fleets.values())
        most = None if useful is None else {"samplers": useful}
        run = Fleets(fleets, desk=desk, folder=tmp_path, measured_s=measured_s, useful=most)
        run.start({"samplers": 1, "rewards": 1})
        return run

    yield make
    for fleet in made:
        fleet.stop()


def page(desk: Any) -> dict[str, Any]:
    return ray.get(desk.page.remote())


def states(desk: Any, role: str) -> dict[str, str]:
    workers = page(desk).get("fleets", {}).get(role, {"workers": {}})["workers"]
    return {name: row["state"] for name, row in workers.items()}


def test_a_wish_is_heeded_at_a_look_and_the_other_fleet_stays(
    new_fleets: Callable[..., Fleets], desk: Any
) -> None:
    fleets = new_fleets()
    ray.get(desk.ask.remote({"samplers": 3}))
    both = {f"samplers-{i}": "working" for i in range(3)}
    eventually(
        lambda: (
            states(desk, "samplers") == both and states(desk, "rewards") == {"rewards-0": "working"}
        ),
        lambda: fleets.look({}),
    )
    ray.get(desk.ask.remote({"samplers": 1}))
    one = {"samplers-0": "working"}
    eventually(lambda: states(desk, "samplers") == one, lambda: fleets.look({}))


def test_the_last_of_two_wishes_counts(new_fleets: Callable[..., Fleets], desk: Any) -> None:
    fleets = new_fleets()
    for count in (5, 2):
        ray.get(desk.ask.remote({"rewards": count}))
    eventually(lambda: len(states(desk, "rewards")) == 2, lambda: fleets.look({}))


@pytest.mark.parametrize(
    "counts", [{"samplers": 0}, {"samplers": 10**6}, {"learners": 2}, {"samplers": (4, 2)}]
)
def test_the_desk_takes_no_wish_that_cannot_be(desk: Any, counts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there is no fleet|give 1 to"):
        ray.get(desk.ask.remote(counts))
    assert ray.get(desk.wishes.remote()) == {}


def test_every_decision_can_be_read_afterwards(
    new_fleets: Callable[..., Fleets], desk: Any, tmp_path: Path
) -> None:
    fleets = new_fleets()
    fleets.scale("samplers", 2, "first")
    fleets.scale("samplers", 2, "nothing changes")
    fleets.scale("samplers", 1, "second")
    written = [json.loads(line) for line in (tmp_path / DECISIONS_FILE).read_text().splitlines()]
    assert [(d["from"], d["to"], d["why"]) for d in written] == [(1, 2, "first"), (2, 1, "second")]
    eventually(lambda: bool(page(desk)), lambda: fleets.look({}))
    assert page(desk)["decisions"] == written


def test_an_actor_that_was_replaced_can_be_read_of_afterwards(
    new_fleets: Callable[..., Fleets], desk: Any, tmp_path: Path
) -> None:
    fleets = new_fleets()
    working = {"samplers-0": "working"}
    eventually(lambda: states(desk, "samplers") == working, lambda: fleets.look({}))
    ray.kill(ray.get_actor("samplers-0"))
    file = tmp_path / DECISIONS_FILE
    eventually(file.exists, lambda: fleets.look({}))
    [written] = map(json.loads, file.read_text().splitlines())
    assert (written["role"], written["from"], written["to"]) == ("samplers", 1, 1)
    assert written["why"].startswith("samplers-0 ended, 1 in a row: ")
    assert written["why"].endswith("; it is replaced")


@pytest.mark.slow
def test_an_actor_that_finds_no_place_is_told_from_one_at_work(
    new_fleets: Callable[..., Fleets], desk: Any
) -> None:
    fleets = new_fleets(num_cpus=1)
    fleets.scale("samplers", 2, "one more than there are CPUs for")
    placing = {"samplers-0": "working", "samplers-1": "placing"}
    eventually(
        lambda: (
            states(desk, "samplers") == placing
            and states(desk, "rewards") == {"rewards-0": "working"}
        ),
        lambda: fleets.look({}),
    )
    begun = time.monotonic()
    fleets.scale("samplers", 1, "it has nothing in hand to finish")
    assert states(desk, "samplers") == placing
    eventually(
        lambda: states(desk, "samplers") == {"samplers-0": "working"}, lambda: fleets.look({})
    )
    assert time.monotonic() - begun < FAST.drain_s / 2


@pytest.mark.slow
def test_an_actor_that_drains_is_shown_until_it_is_gone(
    new_fleets: Callable[..., Fleets], desk: Any
) -> None:
    fleets = new_fleets(lambda owner: Counting(owner, leaving_s=2.5))
    fleets.scale("samplers", 2, "for the test")
    eventually(lambda: len(states(desk, "samplers")) == 2, lambda: fleets.look({}))
    eventually(
        lambda: set(states(desk, "samplers").values()) == {"working"}, lambda: fleets.look({})
    )
    fleets.scale("samplers", 1, "for the test")
    ending = {"samplers-0": "working", "samplers-1 (ending)": "draining"}
    eventually(lambda: states(desk, "samplers") == ending, lambda: fleets.look({}))
    eventually(
        lambda: states(desk, "samplers") == {"samplers-0": "working"}, lambda: fleets.look({})
    )


def test_a_page_tells_the_rate_and_what_the_run_is_at(
    new_fleets: Callable[..., Fleets], desk: Any
) -> None:
    fleets = new_fleets()

    def rate() -> float | None:
        workers = page(desk).get("fleets", {}).get("samplers", {}).get("workers", {})
        return workers.get("samplers-0", {}).get("rate")

    eventually(lambda: bool(rate()), lambda: fleets.look({"stage": "training", "cycle": 3}))
    assert (page(desk)["stage"], page(desk)["cycle"]) == ("training", 3)
    shown = io.StringIO()
    Console(width=100, file=shown).print(rendered(page(desk)))
    assert "samplers: 1 of 1 at work" in shown.getvalue()


@pytest.mark.slow
def test_a_fleet_that_is_left_to_the_rule_grows_to_its_bound_and_is_taken_back(
    new_fleets: Callable[..., Fleets], desk: Any, tmp_path: Path
) -> None:
    fleets = new_fleets(Busy, measured_s=1.0)
    begun = time.monotonic()

    def look() -> None:
        # A learner that waits for samplers half of the time.
        passed_s = time.monotonic() - begun
        fleets.look(
            {
                "stage": "training",
                "cycle": int(passed_s / 0.3),
                "learner_waited_s": {"samplers": passed_s / 2},
                "queue_share": 0.2,
            }
        )

    ray.get(desk.ask.remote({"samplers": (1, 3)}))
    three = {f"samplers-{i}": "working" for i in range(3)}
    eventually(lambda: states(desk, "samplers") == three, look)
    assert page(desk)["fleets"]["samplers"]["bounds"] == {"least": 1, "most": 3}
    assert page(desk)["fleets"]["rewards"]["bounds"] is None
    written = [json.loads(line) for line in (tmp_path / DECISIONS_FILE).read_text().splitlines()]
    assert [(each["from"], each["to"]) for each in written] == [(1, 2), (2, 3)]
    assert all("the learner waits for them 5" in each["why"] for each in written)
    ray.get(desk.ask.remote({"samplers": 1}))
    eventually(lambda: states(desk, "samplers") == {"samplers-0": "working"}, look)
    for _ in range(30):
        look()
        time.sleep(0.1)
    assert len(states(desk, "samplers")) == 1


@pytest.mark.slow
def test_actors_without_a_place_keep_the_rule_from_nothing_but_more_of_them(
    new_fleets: Callable[..., Fleets], desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.fleet.fleets._STUCK_S", 1.0)
    cpus = ray.cluster_resources()["CPU"]
    fleets = new_fleets(Counting, measured_s=1.0, num_cpus=cpus / 3)  # room for three in all
    begun = time.monotonic()

    def look(waits: float) -> None:
        passed_s = time.monotonic() - begun
        facts = {"stage": "training", "cycle": int(passed_s / 0.3), "queue_share": 0.0}
        fleets.look({**facts, "learner_waited_s": {"samplers": waits * passed_s}})

    ray.get(desk.ask.remote({"samplers": 4}))
    two = {"samplers-0": "working", "samplers-1": "working"}
    none = {"samplers-2": "placing", "samplers-3": "placing"}
    eventually(lambda: states(desk, "samplers") == two | none, lambda: look(0.0))
    ray.get(desk.ask.remote({"samplers": (1, 8)}))
    # They count images and no seconds: idle all the time, as the learner never waits.
    eventually(lambda: states(desk, "samplers") == {"samplers-0": "working"}, lambda: look(0.0))


@pytest.mark.slow
def test_the_preparation_gets_more_samplers_than_a_cycle_has_work_for(
    new_fleets: Callable[..., Fleets], desk: Any, tmp_path: Path
) -> None:
    fleets = new_fleets(Busy, measured_s=1.0, useful=2)
    begun = time.monotonic()

    def look(stage: str) -> None:
        waited = {"samplers": time.monotonic() - begun}
        fleets.look({"stage": stage, "cycle": 0, "learner_waited_s": waited, "queue_share": 0.2})

    ray.get(desk.ask.remote({"samplers": (1, 4)}))
    four = {f"samplers-{i}": "working" for i in range(4)}
    eventually(lambda: states(desk, "samplers") == four, lambda: look("collecting"))
    two = {f"samplers-{i}": "working" for i in range(2)}
    eventually(lambda: states(desk, "samplers") == two, lambda: look("training"))
    last = json.loads((tmp_path / DECISIONS_FILE).read_text().splitlines()[-1])
    assert (last["from"], last["to"], last["why"]) == (4, 2, "a cycle has no work for more")


@pytest.mark.slow
def test_a_fleet_that_shrinks_keeps_those_at_work(
    new_fleets: Callable[..., Fleets], desk: Any
) -> None:
    cpus = ray.cluster_resources()["CPU"]
    fleets = new_fleets(num_cpus=cpus / 2)  # room for one beside the reward server
    fleets.scale("samplers", 2, "for the test")
    last = {"samplers-0": "working", "samplers-1": "placing"}
    eventually(lambda: states(desk, "samplers") == last, lambda: fleets.look({}))
    ray.kill(fleets._fleets["samplers"]._slots[0].actor)  # the other one gets its room
    first = {"samplers-0": "placing", "samplers-1": "working"}
    eventually(lambda: states(desk, "samplers") == first, lambda: fleets.look({}))
    fleets.scale("samplers", 1, "for the test")
    kept = {"samplers-1": "working"}
    eventually(lambda: states(desk, "samplers") == kept, lambda: fleets.look({}))
    fleets.scale("samplers", 2, "a number that is free")
    assert set(fleets.stats()) >= {"samplers-1"}
    assert {slot.name for slot in fleets._fleets["samplers"]._slots} == {
        "samplers-0",
        "samplers-1",
    }


def test_bounds_bring_a_fleet_within_them_at_once(
    new_fleets: Callable[..., Fleets], desk: Any
) -> None:
    fleets = new_fleets()
    ray.get(desk.ask.remote({"samplers": (2, 4)}))
    eventually(lambda: len(states(desk, "samplers")) == 2, lambda: fleets.look({}))


def test_a_desk_that_died_loses_no_run(
    new_fleets: Callable[..., Fleets], desk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fleets = new_fleets()
    ray.kill(desk, no_restart=True)
    told = "the desk of deploy.fleet does not answer"
    eventually(lambda: told in caplog.text, lambda: fleets.look({}))
    fleets.scale("samplers", 2, "by another way")
    assert len(fleets._fleets["samplers"]) == 2
