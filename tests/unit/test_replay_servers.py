"""Where a run's embedded servers are, and what each server of a run keeps."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from deploy.run.bookings import Room
from deploy.run.controller import Controller
from deploy.run.replay_servers import out_of_reach, replay_settings, server_folders
from deploy.settings.run_config import load_config

SMOKE = Path(__file__).resolve().parents[2] / "deploy" / "configs" / "smoke.yaml"
RUN = Path("run")
HEAD = Room("10.0.0.1", 8, 0, {"fleetune-role": "head"}, host="head")
FAR = Room("10.0.0.2", 8, 0, {"fleetune-role": "learner"}, host="far")
PINNED = [
    f"{role}.node_labels={{fleetune-role: head}}" for role in ("actors", "scoring", "learner")
]


def test_one_server_has_the_names_that_it_has_without_others() -> None:
    assert server_folders(load_config(SMOKE), RUN) == {"replay-server": RUN / "redis"}


def test_several_servers_are_numbered_and_the_first_is_where_it_always_is() -> None:
    config = load_config(SMOKE, ["replay.shards=3"])
    assert server_folders(config, RUN) == {
        "replay-server-0": RUN / "redis",
        "replay-server-1": RUN / "redis-1",
        "replay-server-2": RUN / "redis-2",
    }


@pytest.mark.parametrize(("servers", "records"), [(1, 96), (2, 48), (3, 33), (5, 21)])
def test_each_server_keeps_whole_groups_and_all_keep_what_is_configured(
    servers: int, records: int
) -> None:
    # 32 groups of 3.
    urls = " ".join(f"redis://server{number}" for number in range(servers))
    parts = replay_settings(load_config(SMOKE), urls).of_shards()
    assert [part.capacity_records for part in parts] == [records] * servers


def problem_on(*rooms: Room, overrides: Sequence[str] = (), redis: str = "") -> str | None:
    """Of embedded servers on the head, where the cluster has these nodes."""
    environ = {"REDIS_URL": redis} if redis else {}
    return out_of_reach(load_config(SMOKE, list(overrides)), environ, rooms, "head")


@pytest.mark.parametrize("overrides", [[], ["replay.redis=embedded"]])
def test_a_machine_from_where_embedded_servers_are_not_reached_is_told(
    overrides: list[str],
) -> None:
    problem = problem_on(HEAD, FAR, overrides=overrides)
    assert problem is not None
    assert problem.startswith(
        "learner.ranks: may be placed on far, and an embedded Redis on head is"
    )
    assert "set REDIS_URL" in problem


def test_the_only_machine_with_room_may_be_another_than_the_drivers() -> None:
    assert problem_on(replace(HEAD, cpus=0), FAR) is not None


def test_nodes_of_one_machine_reach_its_sockets() -> None:
    assert problem_on(HEAD) is None
    assert problem_on(HEAD, replace(FAR, host="head")) is None


def test_servers_that_are_given_are_reached_from_everywhere() -> None:
    assert problem_on(HEAD, FAR, redis="redis://r:6379/0") is None
    assert problem_on(HEAD, FAR, overrides=["replay.redis=redis://r:6379/0"]) is None


def test_a_run_that_has_no_place_elsewhere_may_embed() -> None:
    assert problem_on(HEAD, FAR, overrides=PINNED) is None
    assert problem_on(HEAD, replace(FAR, cpus=0)) is None
    assert problem_on(HEAD, replace(FAR, cpus=0), overrides=["learner.num_cpus=0"]) is not None


def test_whoever_does_not_read_the_replay_may_be_anywhere() -> None:
    away = "evaluation.node_labels={fleetune-role: learner}"
    assert problem_on(HEAD, FAR, overrides=[*PINNED, away]) is None


def test_a_driver_begins_nothing_where_its_servers_would_not_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = {
        "Alive": True,
        "NodeName": "10.0.0.2",
        "NodeManagerHostname": "another-machine",
        "Resources": {"CPU": 8.0},
    }
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{**node, "Alive": False}, node])
    config = load_config(SMOKE, ["name=mine", f"folder={tmp_path}"])
    assert Controller(config, {}, resume=False).run() == 2
    assert "may be placed on another-machine" in caplog.text
    assert list(tmp_path.iterdir()) == []
