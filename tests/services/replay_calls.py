"""Short ways to call a replay, for the tests of what `buffer.replay.Replay` promises."""

from collections.abc import Callable

from buffer.records import Record, Scores
from buffer.redis_replay import RedisReplay

NewReplay = Callable[..., RedisReplay]
MakeGroup = Callable[..., list[Record]]
MakeScores = Callable[..., Scores]

LEASE_S = 30.0
SHORT_S = 0.05


def issue(replay: RedisReplay, count: int, version: int = 0) -> None:
    """Admit and lease `count` tickets."""
    replay.admit(limit=replay.counters().admitted + count, policy_version=version)
    for _ in range(count):
        assert replay.lease_ticket("sampler", lease_s=LEASE_S) is not None


def put(replay: RedisReplay, groups: list[list[Record]]) -> None:
    """Issue and put groups whose tickets are the next ones."""
    issue(replay, len(groups))
    for group in groups:
        assert replay.put_group(group[0].ticket, group)


def claim(replay: RedisReplay, max_records: int = 100, owner: str = "server") -> list[Record]:
    return replay.claim(owner, max_records=max_records, block_s=0, lease_s=LEASE_S)


def assert_balanced(replay: RedisReplay) -> None:
    now = replay.counters()
    assert now.issued_records == now.committed + now.failed + now.pending
    assert now.issued == now.leased + now.open_tickets + now.progress
    assert now.committed == now.live + now.evicted
