"""The pool of reward servers under a real local Ray."""

import time
from collections.abc import Callable, Iterator
from threading import Event

import pytest
import ray

from reward_servers.pool import PoolGaveUpError, PoolSettings, RewardPool, Server

pytestmark = pytest.mark.ray

FAST = PoolSettings(backoff_s=0.1, max_failures=1, stop_timeout_s=10, stats_timeout_s=10)


def build(owner: str) -> Server:
    """A server that only waits to be stopped."""

    class Waiting:
        def __init__(self) -> None:
            self.stopping = Event()

        def run(self) -> None:
            self.stopping.wait(120)

        def stop(self) -> None:
            self.stopping.set()

        def stats(self) -> dict[str, float | str]:
            return {"owner": owner}

    return Waiting()


def build_nothing(owner: str) -> Server:
    raise OSError("no such weights")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            namespace="rewards",
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture
def pool() -> Iterator[RewardPool]:
    pool = RewardPool(
        "shapes", build, namespace="rewards", actor_options={"num_cpus": 0}, settings=FAST
    )
    yield pool
    pool.stop()


def eventually(condition: Callable[[], bool], pool: RewardPool) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for 60 s"
        pool.ensure_alive()
        time.sleep(0.05)


def owners(pool: RewardPool) -> list[str]:
    return sorted(str(stats["owner"]) for stats in pool.stats().values())


def test_servers_are_numbered_and_named_after_the_pool(pool: RewardPool) -> None:
    pool.start(2)
    assert sorted(pool.stats()) == ["reward-shapes-0", "reward-shapes-1"]


def test_a_server_that_died_is_replaced_under_another_owner(pool: RewardPool) -> None:
    pool.start(1)
    assert owners(pool) == ["reward-shapes-0.0"]
    ray.kill(ray.get_actor("reward-shapes-0"))
    eventually(lambda: owners(pool) == ["reward-shapes-0.1"], pool)


def test_scaling_down_stops_the_highest_numbers(pool: RewardPool) -> None:
    pool.start(2)
    pool.scale(1)
    assert (len(pool), owners(pool)) == (1, ["reward-shapes-0.0"])


def test_scaling_up_again_reuses_numbers(pool: RewardPool) -> None:
    pool.start(2)
    pool.scale(1)
    pool.scale(2)
    eventually(lambda: len(pool.stats()) == 2, pool)
    assert sorted(pool.stats()) == ["reward-shapes-0", "reward-shapes-1"]


def test_a_server_that_cannot_be_built_ends_the_pool_with_its_reason() -> None:
    pool = RewardPool("broken", build_nothing, namespace="rewards", settings=FAST)
    pool.start(1)
    with pytest.raises(PoolGaveUpError, match=r"reward-broken-0 ended 2 times .*no such weights"):
        eventually(lambda: False, pool)
    pool.stop()


def test_a_pool_of_none_is_refused(pool: RewardPool) -> None:
    with pytest.raises(ValueError, match="start at least 1"):
        pool.start(0)
