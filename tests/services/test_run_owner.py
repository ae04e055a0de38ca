"""Whose a run on its servers is: one start's at a time, out of one folder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnavailable, ReplayUnfit
from buffer.replay_settings import ReplaySettings
from buffer.run_owner import Start
from buffer.sharded_replay import connect_replay
from deploy.erase import erase
from deploy.run.folder import RunFolder
from deploy.run.replay_servers import refuse_old_run
from deploy.settings.run_config import load_config
from tests.services.replay_calls import (
    LEASE_S,
    AnyReplay,
    MakeGroup,
    leased,
    put,
    several_servers,
)

pytestmark = pytest.mark.redis
RUN = "owned"
SMOKE = "deploy/configs/smoke.yaml"
FIRST = Start(token="host:/a (1)", is_new=True)
AGAIN = Start(token="host:/a (2)", former=[FIRST.token])
OTHER = Start(token="host:/b (1)", is_new=True)
Starting = Callable[[Start | None], AnyReplay]


@pytest.fixture
def starting(urls: list[str]) -> Iterator[Starting]:
    """What a start of one run gets as its replay."""
    with contextlib.ExitStack() as stack:
        made: list[AnyReplay] = []

        def begin(start: Start | None) -> AnyReplay:
            settings = ReplaySettings(url=" ".join(urls), run=RUN, capacity_records=9)
            made.append(connect_replay(settings, start))
            stack.callback(made[-1].close)
            return made[-1]

        yield begin
        made[0].erase()


def wiped(url: str) -> None:
    """A server that has lost all of the run."""
    with connect(url, timeout_s=5) as client:
        client.unlink(*client.scan_iter(f"fleetune:{{{RUN}}}:*"))


def test_a_second_run_of_one_name_is_refused_before_the_first_admits_anything(
    starting: Starting,
) -> None:
    starting(FIRST)
    told = rf"another run of this name, last started by host:/a \(1\).*deploy.erase {RUN}"
    with pytest.raises(ReplayUnfit, match=told):
        starting(OTHER)


def test_a_later_start_out_of_the_same_folder_goes_on(
    starting: Starting, make_group: MakeGroup
) -> None:
    put(starting(FIRST), [make_group(0)])
    again = starting(AGAIN)
    again.admit(limit=2, policy_version=1)
    assert leased(again, 2) == [1]
    assert starting(AGAIN).counters() == again.counters()


def test_of_two_copies_of_one_folder_the_first_to_go_on_does(starting: Starting) -> None:
    starting(FIRST)
    copy = Start(token="host:/copy (2)", former=[FIRST.token])
    starting(copy)
    with pytest.raises(ReplayUnfit, match=r"last started by host:/copy \(2\)"):
        starting(AGAIN)


def test_who_was_at_work_while_a_copy_of_the_folder_went_on_admits_no_more(
    starting: Starting,
) -> None:
    first = starting(FIRST)
    first.admit(limit=1, policy_version=0)
    starting(AGAIN)
    with pytest.raises(ReplayUnfit, match="does not hold this start's run any more"):
        first.admit(limit=5, policy_version=1)
    assert first.counters().admitted == 1


def test_a_run_whose_servers_lost_all_of_it_is_taken_anew(
    starting: Starting, urls: list[str]
) -> None:
    starting(FIRST).admit(limit=3, policy_version=0)
    for url in urls:
        wiped(url)
    assert starting(AGAIN).counters().admitted == 0
    with pytest.raises(ReplayUnfit, match="another run of this name"):
        starting(OTHER)


def test_a_server_that_came_back_without_its_last_writes_is_the_runs_still(
    starting: Starting, urls: list[str]
) -> None:
    starting(FIRST)
    starting(AGAIN)
    for url in urls:
        with connect(url, timeout_s=5) as client:
            client.hset(f"fleetune:{{{RUN}}}:tickets", "owner", FIRST.token)
    third = Start(token="host:/a (3)", former=[FIRST.token, AGAIN.token])
    starting(third).admit(limit=1, policy_version=0)


def test_records_that_nobody_owns_go_to_who_resumes_them_and_not_to_who_begins(
    starting: Starting, make_group: MakeGroup
) -> None:
    put(starting(None), [make_group(0)])
    with pytest.raises(ReplayUnfit, match=f"with --resume.*deploy.erase {RUN}"):
        starting(FIRST)
    resumed = Start(token="host:/a (1)")
    assert starting(resumed).counters().issued == 1
    with pytest.raises(ReplayUnfit, match=r"last started by host:/a \(1\)"):
        starting(Start(token="host:/copy (1)"))


def test_a_tool_beside_a_run_neither_takes_it_nor_is_refused(starting: Starting) -> None:
    first = starting(FIRST)
    starting(None).admit(limit=1, policy_version=0)
    first.admit(limit=2, policy_version=0)


@several_servers
def test_a_server_that_lost_its_part_admits_nothing_until_the_run_is_resumed(
    starting: Starting, urls: list[str]
) -> None:
    first = starting(FIRST)
    first.admit(limit=6, policy_version=0)
    wiped(urls[1])
    with pytest.raises(ReplayUnavailable, match="has lost this run's keys"):
        first.admit(limit=9, policy_version=1)
    assert sorted(leased(first, 20)) == [0, 2, 3, 5, 6, 8]
    again = starting(AGAIN)
    again.skip_to(9)
    again.admit(limit=12, policy_version=1)
    assert sorted(leased(again, 20)) == [9, 10, 11]


@several_servers
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_who_is_refused_at_one_server_leaves_no_trace_on_one_that_lost_its_part(
    starting: Starting, urls: list[str], lost: int
) -> None:
    starting(FIRST)
    wiped(urls[lost])
    with pytest.raises(ReplayUnfit, match="another run of this name"):
        starting(OTHER)
    again = starting(AGAIN)
    again.admit(limit=3, policy_version=0)
    assert sorted(leased(again, 9)) == [0, 1, 2]


def test_a_folder_names_its_starts_to_the_replay_and_an_erased_run_is_nobodys(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = load_config(SMOKE, [f"name={RUN}"])
    settings = ReplaySettings(url=server.url, run=RUN, capacity_records=9)
    one, other, again = (RunFolder(tmp_path / name) for name in ("one", "other", "one"))
    one.open(config, resume=False)
    other.open(config, resume=False)
    connect_replay(settings, one.replay_start).close()
    with pytest.raises(ReplayUnfit, match=f"last started by .*:{one.path} "):
        connect_replay(settings, other.replay_start)
    with pytest.raises(ValueError, match=f"'{RUN}' has begun there already.*{one.path} "):
        refuse_old_run(config, server.url)
    again.replay_start = again._next_start(is_new=False)
    replay = connect_replay(settings, again.replay_start)
    replay.admit(limit=1, policy_version=0)
    assert replay.lease_ticket("sampler", lease_s=LEASE_S) is not None
    replay.close()
    assert erase(RUN, {"REDIS_URL": server.url, "FLEETUNE_RUNS": str(tmp_path)}) > 0
    refuse_old_run(config, server.url)
    replay = connect_replay(settings, other.replay_start)
    replay.erase()
    replay.close()
