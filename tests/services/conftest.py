"""Real servers for the session, an own run in them for every test, on one and on several."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from buffer.records import Record, Scores, record_id
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from buffer.sharded_replay import ShardedReplay, connect_replay
from learner.engine import join_ranks, leave_ranks

# Without this, pytest says only that an assert of theirs failed, not with what values.
pytest.register_assert_rewrite("tests.services.replay_calls")
_RUNS = itertools.count()
AnyReplay = RedisReplay | ShardedReplay


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture(scope="session")
def more_servers() -> Iterator[list[EmbeddedServer]]:
    with EmbeddedServer() as second, EmbeddedServer() as third:
        yield [second, third]


@pytest.fixture(scope="session")
def one_rank() -> Iterator[None]:
    """This process as the only rank of a learner: DeepSpeed joins a process but once."""
    before = dict(os.environ)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_ranks(0, 1, "127.0.0.1", port, timeout_s=60)
    yield
    leave_ranks()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=[1, 3], ids=["one-server", "three-servers"])
def shards(request: pytest.FixtureRequest) -> int:
    """Servers of a replay; a test for one kind of replay alone says so by `one_server`."""
    return request.param


@pytest.fixture
def urls(shards: int, server: EmbeddedServer, request: pytest.FixtureRequest) -> list[str]:
    """Of the servers of a replay."""
    more = request.getfixturevalue("more_servers") if shards > 1 else []
    return [each.url for each in (server, *more)][:shards]


@pytest.fixture
def new_replay(urls: list[str]) -> Iterator[Callable[..., AnyReplay]]:
    """Makes clients of one fresh run, all alike but for the settings that are given."""
    run, made = f"test-{next(_RUNS)}", []

    def make(*, capacity_records: int = 1000, **settings: Any) -> AnyReplay:
        made.append(
            connect_replay(
                ReplaySettings(
                    url=" ".join(urls), run=run, capacity_records=capacity_records, **settings
                )
            )
        )
        return made[-1]

    yield make
    if made:
        made[0].erase()
    for replay in made:
        replay.close()


@pytest.fixture
def replay(new_replay: Callable[..., AnyReplay]) -> AnyReplay:
    return new_replay()


@pytest.fixture
def make_group() -> Callable[..., list[Record]]:
    return group


@pytest.fixture
def scores() -> Callable[..., Scores]:
    return lambda value=1.0: Scores({"jpeg": (float(value), float(value) + 0.5)})


def group(ticket: int, size: int = 2, version: int = 0) -> list[Record]:
    """A ticket's group with two latents a record, both scored."""
    rng = np.random.default_rng(ticket)
    return [
        Record(
            record_id=record_id(ticket, member),
            ticket=ticket,
            member=member,
            prompt=f"prompt {ticket}",
            policy_version=version,
            seed=2**63 + ticket,
            steps=(1, 2),
            scored=(0, 1),
            latents=tuple(rng.standard_normal((2, 4, 8, 8)).astype(np.float16)),
        )
        for member in range(size)
    ]
