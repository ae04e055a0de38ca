"""A learner's view of a replay, and groups that are sampled and scored by hand."""

import threading
from collections.abc import Callable
from typing import Any

from buffer.records import Record, Scores
from buffer.redis_replay import RedisReplay
from learner.group_source import GroupSource
from learner.groups import ScoredGroups

MEMBERS = 2
MakeGroup = Callable[..., list[Record]]


def source(replay: RedisReplay, **settings: Any) -> GroupSource:
    options: dict[str, Any] = {
        "rewards": {"a": 1.0},
        "group_size": MEMBERS,
        "max_open": 4,
        "capacity_groups": 100,
        "stall_s": 0.3,
        "stopping": threading.Event(),
    }
    return GroupSource(replay=replay, **{**options, **settings})


def view(
    replay: RedisReplay, *, steps: tuple[int, ...] = (0, 1), admits: bool = True, **settings: Any
) -> ScoredGroups:
    return ScoredGroups(source(replay, **settings), steps=steps, admits=admits)


def put(replay: RedisReplay, records: list[Record]) -> None:
    replay.admit(limit=records[0].ticket + 1, policy_version=0)
    replay.lease_ticket("sampler", lease_s=10)
    replay.put_group(records[0].ticket, records)


def commit(replay: RedisReplay, records: list[Record], a: float = 1.0) -> None:
    scored = [
        (record.record_id, Scores({"a": (a, a + record.member), "b": (10.0, 20.0)}))
        for record in records
    ]
    replay.commit(scored, "server")


def score_groups(replay: RedisReplay, make_group: MakeGroup, *tickets: int) -> None:
    for ticket in tickets:
        put(replay, make_group(ticket))
        commit(replay, make_group(ticket), a=float(ticket))
