"""A replay that fails a learner in its waits: what is saved, what is borne, and what is told."""

import dataclasses
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayError, ReplayFull, ReplayUnavailable, ReplayUnfit
from buffer.records import Record, Scores
from buffer.redis_replay import RedisReplay
from learner.checkpoint import newest
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.waits import StallError, on_all_ranks
from tests.services.training_world import World

pytestmark = pytest.mark.redis
AWAY = ReplayUnavailable("nobody answers at redis://there")
FULL = ReplayFull("maxmemory is reached")


class Failing:
    """A replay whose calls fail as long as they are told to.

    Attributes:
        failing: errors by the name of the call that raises them; `any` of all others.
    """

    def __init__(self, replay: Any) -> None:
        self._replay = replay
        self.failing: dict[str, ReplayError] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if error := self.failing.get(name, self.failing.get("any")):
                raise error
            return getattr(self._replay, name)(*args, **options)

        return call


def view(replay: Any, **settings: Any) -> ScoredGroups:
    options: dict[str, Any] = {"max_open": 4, "stall_s": 0.3, **settings}
    source = GroupSource(
        replay=replay,
        rewards={"a": 1.0},
        group_size=2,
        capacity_groups=9,
        stopping=threading.Event(),
        **options,
    )
    return ScoredGroups(source, steps=(0,), admits=True, round_ends=(1, 2, 3))


def score(replay: RedisReplay, records: list[Record]) -> None:
    """What samplers and reward servers do with the next ticket."""
    ticket = replay.lease_ticket("sampler", lease_s=10)
    assert ticket is not None
    replay.put_group(ticket.number, records)
    replay.commit([(r.record_id, Scores({"a": (1.0, 2.0)})) for r in records], "server")


def with_a_refused_ticket(
    replay: RedisReplay, make_group: Callable[..., list[Record]]
) -> tuple[Failing, ScoredGroups]:
    """A full replay that has issued one ticket and refused the next, after the wait for the one."""
    replay.admit(limit=1, policy_version=0)
    score(replay, make_group(0))
    failing = Failing(replay)
    failing.failing["admit"] = FULL
    groups = view(failing, max_staleness=1)
    groups.collect(range(1), 0)  # it has all that it waits for
    return failing, groups


@dataclass
class FailingWorld(World):
    """A run whose learner, and nobody else, sees a replay that fails."""

    seen: list[Failing] = field(default_factory=list)

    def _source(self, stopping: threading.Event) -> GroupSource:
        source = super()._source(stopping)
        self.seen.append(Failing(source.replay))
        failing: Any = self.seen[-1]
        return dataclasses.replace(source, replay=failing)


@pytest.mark.usefixtures("one_rank")
def test_an_outage_in_a_wait_loses_no_policy_step(
    server: EmbeddedServer, pipelines: Path, tmp_path: Path
) -> None:
    world = FailingWorld(server.url, tmp_path.name, tmp_path, pipelines)

    def end(version: int, stopping: threading.Event) -> None:
        if version == 3:
            world.seen[-1].failing["any"] = AWAY

    with pytest.raises(StallError, match=r"tickets 10 to 11: nobody answers at redis://there"):
        world.live(at_version=end)
    found = newest(tmp_path)
    assert found is not None
    assert found.name == "00000002-midway"
    life = world.live(resume=True)
    assert life.finished
    assert min(life.published) == 3


@pytest.mark.parametrize("call", ["tail", "counters", "admit"])
def test_whatever_fails_in_a_wait_ends_it_as_one_in_vain(replay: RedisReplay, call: str) -> None:
    failing = Failing(replay)
    failing.failing[call] = AWAY
    with pytest.raises(StallError, match="tickets 0 to 0: nobody answers") as caught:
        view(failing).collect(range(1), 0)
    assert caught.value.__cause__ is AWAY


def test_a_budget_that_cannot_be_looked_at_ends_a_run_as_a_wait_in_vain(
    replay: RedisReplay,
) -> None:
    failing = Failing(replay)
    failing.failing["counters"] = AWAY
    with pytest.raises(StallError, match="query budget was checked: nobody answers"):
        view(failing, max_records=10).affords(range(1))


def test_a_server_that_is_full_for_a_while_is_waited_for(
    replay: RedisReplay,
    make_group: Callable[..., list[Record]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing, refused = Failing(replay), 0

    def admit(*, limit: int, policy_version: int) -> None:
        nonlocal refused
        if refused < 3:
            refused += 1
            raise FULL
        replay.admit(limit=limit, policy_version=policy_version)
        if not replay.counters().issued:
            score(replay, make_group(0))

    monkeypatch.setattr(failing, "admit", admit, raising=False)
    groups = view(failing, stall_s=20)
    with caplog.at_level(logging.WARNING):
        groups.collect(range(1), 0)
    assert (refused, groups.complete(range(1))) == (3, [0])
    assert caplog.text.count("no more tickets are issued until there is room") == 1


def test_a_server_that_stays_full_ends_the_wait_and_is_named(replay: RedisReplay) -> None:
    failing = Failing(replay)
    failing.failing["admit"] = FULL
    with pytest.raises(StallError, match=r"no record was scored .* issues no tickets: maxmemory"):
        view(failing).collect(range(1), 0)


def test_tickets_that_a_full_server_has_refused_are_asked_for_between_steps(
    replay: RedisReplay, make_group: Callable[..., list[Record]]
) -> None:
    failing, groups = with_a_refused_ticket(replay, make_group)
    groups.top_up()
    assert replay.counters().admitted == 1
    failing.failing.clear()
    groups.top_up()
    assert replay.counters().admitted == 2


def test_what_another_rank_cannot_reach_ends_the_wait_here_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed_and_unfit = iter((True, False))
    monkeypatch.setattr("learner.waits.any_rank", lambda flag: next(failed_and_unfit))
    with pytest.raises(StallError, match="another rank of the learner cannot reach it"):
        on_all_ranks(lambda: np.zeros(1), "in the wait for tickets 0 to 1")


@pytest.mark.parametrize("is_refused_here", [True, False])
def test_a_run_that_another_start_has_taken_is_not_waited_for_on_any_rank(
    monkeypatch: pytest.MonkeyPatch, is_refused_here: bool
) -> None:
    def ask() -> None:
        if is_refused_here:
            raise ReplayUnfit("the run is another start's")

    monkeypatch.setattr("learner.waits.any_rank", lambda flag: True)
    with pytest.raises(ReplayUnfit, match=r"another start's|another rank .* was refused"):
        on_all_ranks(ask, "in the wait for tickets 0 to 1")


@pytest.mark.usefixtures("one_rank")
def test_a_start_whose_run_was_taken_leaves_no_checkpoint_for_the_other(
    server: EmbeddedServer, pipelines: Path, tmp_path: Path
) -> None:
    world = FailingWorld(server.url, tmp_path.name, tmp_path, pipelines)
    taken = ReplayUnfit("the run is another start's")

    def end(version: int, stopping: threading.Event) -> None:
        if version == 3:
            world.seen[-1].failing["any"] = taken

    with pytest.raises(ReplayUnfit):
        world.live(at_version=end)
    found = newest(tmp_path)
    assert found is not None
    assert found.name == "00000002"


def test_an_outage_between_steps_is_left_to_the_next_wait(
    replay: RedisReplay, make_group: Callable[..., list[Record]]
) -> None:
    failing, groups = with_a_refused_ticket(replay, make_group)
    failing.failing["counters"] = AWAY
    groups.top_up()
    failing.failing.clear()
    groups.top_up()  # another outage would hold the steps up once more
    assert replay.counters().admitted == 1
    groups.collect(range(1), 0)
    assert replay.counters().admitted == 2
