"""The reward server while a reward stalls or is down, or the replay is full or away."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from buffer.backoff import GaveUpError
from buffer.errors import ReplayFull
from buffer.records import Record, Scores
from reward_servers.breaker import RewardDownError
from reward_servers.server import RewardServer
from reward_servers.timed import StalledError
from tests.unit.reward_server_fakes import (
    FAST,
    Brightness,
    Doing,
    FakeReplay,
    decode,
    ids,
    record,
    running,
    serve,
)


def test_a_stalled_reward_fails_its_records_as_timed_out() -> None:
    release = threading.Event()

    def stall(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        release.wait(20)
        return Brightness().score(images, prompts)

    replay = FakeReplay([record(0)])
    serve(replay, {"slow": Doing(stall)}, replace(FAST, timeout_s=0.05))
    release.set()
    assert replay.failed == {ids([0])[0]: "slow of step 1: timed out after 0.05 s"}
    assert replay.committed == {}


def test_a_reward_is_used_again_after_one_stall() -> None:
    release, calls = threading.Event(), iter([True])

    def stall_once(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if next(calls, False):
            release.wait(20)
        return Brightness().score(images, prompts)

    replay = FakeReplay([record(0)], attempts=20)  # a busy machine may take its time, too
    serve(replay, {"slow": Doing(stall_once)}, replace(FAST, timeout_s=0.5))
    release.set()
    assert list(replay.committed) == ids([0])


def test_a_server_whose_reward_stalls_again_and_again_ends_for_a_new_process() -> None:
    release = threading.Event()

    def stall(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        release.wait(20)
        return Brightness().score(images, prompts)

    settings = replace(FAST, timeout_s=0.02, max_batch=1)
    replay = FakeReplay([record(i, scored=(0,)) for i in range(9)])
    server = RewardServer(replay, decode, {"slow": Doing(stall)}, owner="r-0", settings=settings)
    with pytest.raises(StalledError, match="3 calls of reward 'slow' have not returned"):
        server.run()
    release.set()


def test_claims_are_renewed_while_a_reward_takes_its_time() -> None:
    replay = FakeReplay([record(0), record(1)])

    def slow(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        for _ in range(3):
            replay.renewals.acquire(timeout=60)
        return Brightness().score(images, prompts)

    serve(replay, {"slow": Doing(slow)}, replace(FAST, lease_s=0.15, timeout_s=300))
    assert replay.renewed.count(ids([1])[0]) >= 3


class Service:
    """A reward that is up or down, and counts what it is asked while it is down."""

    def __init__(self) -> None:
        self.up = True
        self.asked_in_vain = 0

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if not self.up:
            self.asked_in_vain += 1
            raise ConnectionError("service is down")
        return Brightness().score(images_BHWC, prompts)


class DownAfterOne(FakeReplay):
    """The service goes down when the first record is committed; may come back."""

    def __init__(self, records: Sequence[Record], service: Service, *, comes_back: bool) -> None:
        super().__init__(records)
        self.service = service
        self.comes_back = comes_back

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
        if not self.committed:
            self.service.up = False
        return super().commit(scored, owner)

    def unclaim(self, record_ids: Sequence[str]) -> int:
        if self.comes_back:
            self.service.up = True
        return super().unclaim(record_ids)


def test_records_wait_for_a_reward_that_went_down_and_none_is_worn_out() -> None:
    service = Service()
    records = [record(i, scored=(0,)) for i in range(9)]
    replay = DownAfterOne(records, service, comes_back=True)
    stats = serve(replay, {"service": service}, replace(FAST, max_batch=1)).stats()
    assert sorted(replay.committed) == ids(range(9))
    assert replay.failed == {}
    assert (stats["down"], len(replay.returned)) == ("", 1)


def test_a_decoder_that_broke_wears_no_record_out() -> None:
    service = Service()
    replay = DownAfterOne([record(i, scored=(0,)) for i in range(9)], service, comes_back=True)

    def decode_while_up(latents_BCHW: np.ndarray) -> np.ndarray:
        if not service.up:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(latents_BCHW)

    settings = replace(FAST, max_batch=1)
    rewards = {"brightness": Brightness()}
    server = RewardServer(replay, decode_while_up, rewards, owner="r-0", settings=settings)
    with running(server):
        assert replay.settled.wait(60)
    assert sorted(replay.committed) == ids(range(9))
    assert replay.failed == {}


def test_the_rest_of_a_claim_is_given_back_too() -> None:
    service = Service()
    replay = DownAfterOne([record(i) for i in range(9)], service, comes_back=True)
    serve(replay, {"service": service}, replace(FAST, max_batch=2))
    assert sorted(replay.committed) == ids(range(9))
    assert replay.failed == {}


def test_records_that_cannot_be_scored_are_no_outage() -> None:
    def refuse_some(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if "prompt 1" not in prompts and "prompt 2" not in prompts:
            return Brightness().score(images, prompts)
        raise ValueError("not this one")

    replay = FakeReplay([record(i, scored=(0,)) for i in range(4)], attempts=3)
    stats = serve(replay, {"picky": Doing(refuse_some)}, replace(FAST, max_batch=1)).stats()
    assert sorted(replay.failed) == ids([1, 2])
    assert sorted(replay.committed) == ids([0, 3])
    assert (stats["down"], replay.returned) == ("", [])


def test_a_reward_that_stays_down_ends_the_server_with_its_reason() -> None:
    service = Service()
    records = [record(i, scored=(0,)) for i in range(9)]
    replay = DownAfterOne(records, service, comes_back=False)
    settings = replace(FAST, max_batch=1, outage_s=0.2)
    server = RewardServer(replay, decode, {"service": service}, owner="r-0", settings=settings)
    with pytest.raises(RewardDownError, match="service is down"):
        server.run()
    assert replay.failed == {}
    assert service.asked_in_vain < 20


def test_a_gpu_that_is_lost_to_the_process_ends_it_at_once_and_costs_no_record() -> None:
    decoded: list[int] = []

    def decode_some(latents_BCHW: np.ndarray) -> np.ndarray:
        decoded.append(len(latents_BCHW))
        if len(decoded) > 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return decode(latents_BCHW)

    replay = FakeReplay([record(i, scored=(0,)) for i in range(9)])
    settings = replace(FAST, max_batch=1, outage_s=600)
    rewards = {"brightness": Brightness()}
    server = RewardServer(replay, decode_some, rewards, owner="r-0", settings=settings)
    with pytest.raises(RewardDownError, match="a new process is needed: not decoded: RuntimeError"):
        server.run()
    assert sorted(replay.committed) == ids(range(3))
    assert replay.failed == {}
    assert len(replay.waiting) == 6


def test_a_gpu_of_another_process_is_waited_for() -> None:
    down = iter([False, True, True])

    def ask(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if next(down, False):
            raise RuntimeError("the service said: CUDA error: an illegal memory access")
        return Brightness().score(images, prompts)

    replay = FakeReplay([record(i, scored=(0,)) for i in range(3)], attempts=3)
    serve(replay, {"service": Doing(ask)}, replace(FAST, max_batch=1, outage_s=600))
    assert sorted(replay.committed) == ids(range(3))


def test_a_reward_that_never_worked_is_not_waited_for() -> None:
    service = Service()
    service.up = False
    replay = FakeReplay([record(i, scored=(0,)) for i in range(9)])
    serve(replay, {"service": service}, replace(FAST, max_batch=1))
    assert len(replay.failed) == 9


def test_scores_wait_for_room_in_a_full_replay() -> None:
    class Full(FakeReplay):
        refusals = 3

        def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
            if self.refusals:
                self.refusals -= 1
                raise ReplayFull("no room")
            return super().commit(scored, owner)

    model, replay = Brightness(), Full([record(0)])
    stats = serve(replay, {"light": model}, replace(FAST, full_s=0.001)).stats()
    assert (stats["failures"], model.batches) == (0, [2])


def test_a_wait_for_the_replay_is_no_hang() -> None:
    class Away(FakeReplay):
        def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
            time.sleep(0.6)  # as until Redis is back
            return super().commit(scored, owner)

    hung = threading.Event()
    settings = replace(FAST, lease_s=0.03, timeout_s=0.2, hold_s=0.3, commit_s=60)
    replay = Away([record(0)])
    serve(replay, settings=settings, on_hang=hung.set)
    assert list(replay.committed) == ids([0])
    assert not hung.is_set()
    assert len(replay.renewed) > 5


def test_a_decoder_that_hangs_loses_its_claims() -> None:
    hung, replay = threading.Event(), FakeReplay([record(0)])
    renewed: list[int] = []

    def hang(latents_BCHW: np.ndarray) -> np.ndarray:
        hung.wait(60)
        renewed.append(len(replay.renewed))
        time.sleep(0.1)
        renewed.append(len(replay.renewed))
        return decode(latents_BCHW)

    settings = replace(FAST, lease_s=0.03, timeout_s=0.05, hold_s=0.1, commit_s=60)
    rewards = {"light": Brightness()}
    server = RewardServer(replay, hang, rewards, owner="r-0", settings=settings, on_hang=hung.set)
    with running(server):
        assert replay.settled.wait(60)
    assert hung.is_set()
    assert 0 < renewed[0] <= renewed[1] <= renewed[0] + 1  # a beat may be under way


def test_a_probe_that_hangs_is_a_hang_too() -> None:
    hung = threading.Event()

    def decode_one(latents_BCHW: np.ndarray) -> np.ndarray:
        if len(latents_BCHW) == 1:
            hung.wait(60)
        raise RuntimeError("cannot decode")

    settings = replace(FAST, lease_s=0.03, timeout_s=0.05, hold_s=0.1)
    replay = FakeReplay([record(0)])
    probe = np.zeros((1, 4, 2, 2), np.float16), "a prompt"
    server = RewardServer(
        replay,
        decode_one,
        {"light": Brightness()},
        owner="r-0",
        settings=settings,
        on_hang=hung.set,
        scored_before=lambda: probe,
    )
    with running(server):
        assert hung.wait(60)


def test_a_replay_that_fails_a_while_loses_nothing() -> None:
    class Flaky(FakeReplay):
        outages = 2

        def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
            if self.outages > 0:
                self.outages -= 1
                self.waiting += [self.by_id[key] for key, _ in scored]  # their leases run out
                raise ConnectionError("gone for now")
            return super().commit(scored, owner)

    replay = Flaky([record(i) for i in range(3)])
    stats = serve(replay).stats()
    assert sorted(replay.committed) == ids([0, 1, 2])
    assert stats["failures"] == 2


def test_a_server_gives_up_after_too_many_failures_in_a_row() -> None:
    class Broken(FakeReplay):
        def claim(
            self, owner: str, *, max_records: int, block_s: float, lease_s: float
        ) -> list[Record]:
            raise ConnectionError("nobody home")

    settings = replace(FAST, max_failures=3)
    server = RewardServer(
        Broken([]), decode, {"light": Brightness()}, owner="r-7", settings=settings
    )
    with pytest.raises(GaveUpError, match="r-7 failed 4 times in a row, last with ConnectionErr"):
        server.run()
