"""One real server for the session, an own run in it for every test."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from buffer.embedded import EmbeddedServer
from buffer.records import Record, Scores, record_id
from buffer.redis_replay import RedisReplay, ReplaySettings

# Without this, pytest says only that an assert of theirs failed, not with what values.
pytest.register_assert_rewrite("tests.services.replay_calls")
_RUNS = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:
        yield running


@pytest.fixture
def new_replay(server: EmbeddedServer) -> Iterator[Callable[..., RedisReplay]]:
    """Makes clients of one fresh run, all alike but for the settings that are given."""
    run, made = f"test-{next(_RUNS)}", []

    def make(*, capacity_records: int = 1000, **settings: Any) -> RedisReplay:
        made.append(
            RedisReplay.connect(
                ReplaySettings(
                    url=server.url, run=run, capacity_records=capacity_records, **settings
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
def replay(new_replay: Callable[..., RedisReplay]) -> RedisReplay:
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
