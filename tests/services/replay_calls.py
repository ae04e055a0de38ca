"""Short ways to call a replay, for the tests of what `buffer.replay.Replay` promises."""

import time
from collections.abc import Callable

import pytest

from buffer.records import Record, Scores
from buffer.redis_replay import RedisReplay
from buffer.replay import Replay
from buffer.sharded_replay import ShardedReplay

AnyReplay = RedisReplay | ShardedReplay
NewReplay = Callable[..., AnyReplay]
MakeGroup = Callable[..., list[Record]]
MakeScores = Callable[..., Scores]

SERVERS = 3
one_server = pytest.mark.parametrize("shards", [1])
"""For what is promised of one server alone, or is looked at inside it."""
several_servers = pytest.mark.parametrize("shards", [SERVERS])
"""For what only several have."""

LEASE_S = 30.0
SHORT_S = 0.05


def issue(replay: Replay, count: int, version: int = 0) -> None:
    """Admit and lease `count` tickets."""
    replay.admit(limit=replay.counters().admitted + count, policy_version=version)
    for _ in range(count):
        assert replay.lease_ticket("sampler", lease_s=LEASE_S) is not None


def leased(replay: Replay, most: int) -> list[int]:
    """Numbers of the tickets that so many calls get."""
    found = [replay.lease_ticket("sampler", lease_s=LEASE_S) for _ in range(most)]
    return [ticket.number for ticket in found if ticket is not None]


def put(replay: Replay, groups: list[list[Record]]) -> None:
    """Issue and put groups whose tickets are the next ones."""
    issue(replay, len(groups))
    for group in groups:
        assert replay.put_group(group[0].ticket, group)


def claim(replay: Replay, max_records: int = 100, owner: str = "server") -> list[Record]:
    return replay.claim(owner, max_records=max_records, block_s=0, lease_s=LEASE_S)


def assert_balanced(replay: Replay) -> None:
    now = replay.counters()
    assert now.issued_records == now.committed + now.failed + now.pending
    assert now.issued == now.leased + now.open_tickets + now.progress
    assert now.committed == now.live + now.evicted


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Until it is so; a test that waits in vain fails."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
