"""Where the actors of a run are placed, under a real local Ray."""

import pytest
import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from deploy.run.controller import beside_driver, fleet_options
from deploy.run.ranks import packed_place
from deploy.settings.sections import Actors
from tests.services import fleet_world

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
cluster = fleet_world.cluster


@ray.remote(num_cpus=0)
class Located:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


def test_ranks_are_packed_and_book_what_each_needs() -> None:
    place = packed_place(2, num_cpus=0.5, num_gpus=0, node_labels={})
    assert place is not None
    assert place.wait(60)
    table = placement_group_table(place)
    assert table["strategy"] == "PACK"
    assert list(table["bundles"].values()) == [{"CPU": 0.5}, {"CPU": 0.5}]
    remove_placement_group(place)


@pytest.mark.parametrize(("ranks", "num_cpus"), [(1, 1.0), (2, 0.0)])
def test_what_cannot_be_packed_gets_no_group(ranks: int, num_cpus: float) -> None:
    assert packed_place(ranks, num_cpus=num_cpus, num_gpus=0, node_labels={}) is None


def test_what_a_run_cannot_do_without_is_where_its_driver_is() -> None:
    actor = Located.options(scheduling_strategy=beside_driver()).remote()
    assert ray.get(actor.node.remote()) == ray.get_runtime_context().get_node_id()


def test_ranks_go_only_to_nodes_of_their_labels() -> None:
    here = ray.get_runtime_context().get_node_id()
    places = {
        node: packed_place(2, num_cpus=0.5, num_gpus=0, node_labels={"ray.io/node-id": node})
        for node in (here, "0" * len(here))
    }
    answers = [place.wait(10 if node == here else 1) for node, place in places.items() if place]
    for place in filter(None, places.values()):
        remove_placement_group(place)
    assert answers == [True, False]


def test_a_fleet_goes_only_to_nodes_of_its_labels() -> None:
    here = ray.get_runtime_context().get_node_id()
    labels = {"found": {"ray.io/node-id": here}, "missing": {"fleetune-role": "sampler"}}
    actors = {
        name: Located.options(**fleet_options(Actors(num_cpus=0.1, node_labels=each))).remote()
        for name, each in labels.items()
    }
    asked = {name: actor.node.remote() for name, actor in actors.items()}
    assert ray.get(asked["found"], timeout=60) == here
    assert ray.wait([asked["missing"]], timeout=1) == ([], [asked["missing"]])
    for actor in actors.values():
        ray.kill(actor)
