"""The reward server against a hand fake of the replay."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from buffer.backoff import GaveUpError
from buffer.errors import ReplayFull
from buffer.records import Record, Scores, record_id
from reward_servers.base import RewardModel, Scored
from reward_servers.breaker import RewardDownError
from reward_servers.server import RewardServer, ServerSettings
from reward_servers.timed import StalledError

FAST = ServerSettings(
    max_batch=8, batch_wait_s=0.01, timeout_s=5, lease_s=20, block_s=0.02, backoff_s=0.001
)


class FakeReplay:
    """Hands out what it is given, failed records again; remembers how each one ended."""

    def __init__(self, records: Sequence[Record], *, attempts: int = 1) -> None:
        self.waiting = list(records)
        self.by_id = {record.record_id: record for record in records}
        self.attempts = dict.fromkeys(self.by_id, attempts)
        self.committed: dict[str, Scores] = {}
        self.failed: dict[str, str] = {}
        self.renewed: list[str] = []
        self.returned: list[str] = []
        self.settled = threading.Event()

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        if not self.waiting:
            time.sleep(block_s)
        taken, self.waiting = self.waiting[:max_records], self.waiting[max_records:]
        return taken

    def commit(self, scored: Sequence[tuple[str, Scores]], owner: str) -> int:
        new = [pair for pair in scored if pair[0] not in self.committed]
        self.committed.update(new)
        self._look()
        return len(new)

    def fail(self, record_id: str, reason: str, *, retry: bool) -> bool:
        self.attempts[record_id] -= 1
        if retry and self.attempts[record_id] > 0:
            self.waiting.append(self.by_id[record_id])
            return False
        self.failed[record_id] = reason
        self._look()
        return True

    def renew_claims(self, owner: str, record_ids: Sequence[str]) -> int:
        self.renewed += record_ids
        return len(record_ids)

    def unclaim(self, record_ids: Sequence[str]) -> int:
        self.returned += record_ids
        self.waiting += [self.by_id[name] for name in record_ids]
        return len(record_ids)

    def _look(self) -> None:
        if len(self.committed) + len(self.failed) == len(self.by_id):
            self.settled.set()


class Brightness:
    """The mean of each picture; counts its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.prompts: list[str] = []

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        self.batches.append(len(prompts))
        self.prompts += prompts
        return images_BHWC.mean(axis=(1, 2, 3)).astype(np.float32)


class Doing:
    """A reward that does what it is told."""

    def __init__(self, act: Callable[[np.ndarray, Sequence[str]], np.ndarray | Scored]) -> None:
        self.act = act

    def score(self, images_BHWC: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Scored:
        return self.act(images_BHWC, prompts)


def record(ticket: int, *, level: int = 7, scored: tuple[int, ...] = (0, 1)) -> Record:
    """A record whose latent at position p decodes to pictures of brightness level + p."""
    return Record(
        record_id=record_id(ticket, 0),
        ticket=ticket,
        member=0,
        prompt=f"prompt {ticket}",
        policy_version=0,
        seed=ticket,
        steps=(1, 2),
        scored=scored,
        latents=tuple(np.full((4, 2, 2), level + p, dtype=np.float16) for p in (0, 1)),
    )


def decode(latents_BCHW: np.ndarray) -> np.ndarray:
    """Pictures as bright as the latents; latents of 99 cannot be decoded."""
    if (latents_BCHW == 99).any():
        raise RuntimeError("cannot decode 99")
    levels_B = latents_BCHW[:, 0, 0, 0].astype(np.uint8)
    return np.broadcast_to(levels_B[:, None, None, None], (len(levels_B), 4, 4, 3))


def ids(tickets: Sequence[int]) -> list[str]:
    return [record_id(ticket, 0) for ticket in tickets]


@contextmanager
def running(server: RewardServer) -> Iterator[None]:
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.stop()
        thread.join(10)
    assert not thread.is_alive(), "the server did not stop"


def serve(
    replay: FakeReplay,
    rewards: dict[str, RewardModel] | None = None,
    settings: ServerSettings = FAST,
) -> RewardServer:
    server = RewardServer(
        replay, decode, rewards or {"light": Brightness()}, owner="r-0", settings=settings
    )
    with running(server):
        assert replay.settled.wait(10), "some records never ended"
    return server


def test_a_record_is_committed_with_one_value_for_each_scored_latent() -> None:
    replay = FakeReplay([record(0, level=7), record(1, level=20, scored=(1,))])
    serve(replay)
    assert {key: dict(scores.rewards) for key, scores in replay.committed.items()} == {
        ids([0])[0]: {"light": (7.0, 8.0)},
        ids([1])[0]: {"light": (21.0,)},
    }


def test_every_reward_scores_every_record() -> None:
    replay = FakeReplay([record(0)])
    serve(replay, {"light": Brightness(), "dark": Doing(lambda i, p: -Brightness().score(i, p))})
    assert replay.committed[ids([0])[0]].rewards == {"light": (7.0, 8.0), "dark": (-7.0, -8.0)}


def test_each_picture_is_scored_with_the_prompt_of_its_record() -> None:
    model = Brightness()
    serve(FakeReplay([record(0), record(1)]), {"light": model})
    assert sorted(model.prompts) == ["prompt 0"] * 2 + ["prompt 1"] * 2


def test_no_batch_is_larger_than_max_batch() -> None:
    model, replay = Brightness(), FakeReplay([record(i) for i in range(20)])
    serve(replay, {"light": model})
    assert max(model.batches) <= FAST.max_batch
    assert len(replay.committed) == 20


def test_records_that_wait_are_scored_together() -> None:
    model = Brightness()
    serve(FakeReplay([record(i, scored=(0,)) for i in range(8)]), {"light": model})
    assert model.batches == [8]


def test_a_batch_does_not_wait_longer_than_batch_wait_s() -> None:
    patient = replace(FAST, batch_wait_s=0.2)
    begun = time.monotonic()
    serve(FakeReplay([record(0)]), settings=patient)
    assert 0.15 < time.monotonic() - begun < 2


def test_a_full_batch_does_not_wait_at_all() -> None:
    patient = replace(FAST, batch_wait_s=30, max_batch=4)
    begun = time.monotonic()
    serve(FakeReplay([record(i, scored=(0,)) for i in range(4)]), settings=patient)
    assert time.monotonic() - begun < 5


def test_a_failed_value_fails_its_record_only_and_says_why() -> None:
    def picky(images: np.ndarray, prompts: Sequence[str]) -> Scored:
        failures = {i: "too bright" for i, image in enumerate(images) if image.mean() == 31}
        return Scored(Brightness().score(images, prompts), failures)

    replay = FakeReplay([record(0), record(1, level=30), record(2)])
    serve(replay, {"picky": Doing(picky)})
    assert replay.failed == {ids([1])[0]: "picky of step 2: too bright"}
    assert sorted(replay.committed) == ids([0, 2])


def test_a_failed_record_is_tried_again_and_may_succeed() -> None:
    calls = iter([True])

    def first_fails(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray | Scored:
        values = Brightness().score(images, prompts)
        return Scored(values, {0: "not yet"}) if next(calls, False) else values

    replay = FakeReplay([record(0)], attempts=2)
    stats = serve(replay, {"light": Doing(first_fails)}).stats()
    assert (stats["retried"], stats["scored"], stats["failed"]) == (1, 1, 0)


def test_a_latent_that_cannot_be_decoded_fails_its_record_only() -> None:
    replay = FakeReplay([record(0), record(1, level=99), record(2)])
    serve(replay)
    assert replay.failed == {ids([1])[0]: "not decoded: RuntimeError: cannot decode 99"}
    assert sorted(replay.committed) == ids([0, 2])


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

    replay = FakeReplay([record(0)], attempts=2)
    serve(replay, {"slow": Doing(stall_once)}, replace(FAST, timeout_s=0.05))
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
    def slow(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        time.sleep(0.3)
        return Brightness().score(images, prompts)

    replay = FakeReplay([record(0), record(1)])
    serve(replay, {"slow": Doing(slow)}, replace(FAST, lease_s=0.15))
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
    """The service goes down when the first record is committed; comes back after `trials`."""

    def __init__(self, records: Sequence[Record], service: Service, *, comes_back: bool) -> None:
        super().__init__(records, attempts=5)
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


def test_a_reward_that_stays_down_ends_the_server_with_its_reason() -> None:
    service = Service()
    records = [record(i, scored=(0,)) for i in range(9)]
    replay = DownAfterOne(records, service, comes_back=False)
    settings = replace(FAST, max_batch=1, outage_s=0.2)
    server = RewardServer(replay, decode, {"service": service}, owner="r-0", settings=settings)
    with pytest.raises(RewardDownError, match="service is down"):
        server.run()
    assert replay.failed == {}
    assert service.asked_in_vain < 9


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


def test_a_record_that_another_server_committed_counts_as_a_duplicate() -> None:
    replay = FakeReplay([record(0), record(1)])
    replay.committed[ids([0])[0]] = Scores({"light": (1.0, 2.0)})
    stats = serve(replay).stats()
    assert (stats["scored"], stats["duplicates"]) == (1, 1)


def test_stats_tell_seconds_by_stage() -> None:
    def slow(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        time.sleep(0.05)
        return Brightness().score(images, prompts)

    stats = serve(FakeReplay([record(0)]), {"slow": Doing(slow)}).stats()
    assert 0.05 <= float(stats["score_s"]) < 5
    assert (stats["images"], stats["owner"]) == (2, "r-0")


@pytest.mark.parametrize("rewards", [{}, {"a name with spaces": Brightness()}])
def test_reward_names_are_checked_at_once(rewards: dict[str, RewardModel]) -> None:
    with pytest.raises(ValueError, match=r"0 rewards|reward name"):
        RewardServer(FakeReplay([]), decode, rewards, owner="r-0")


@pytest.mark.parametrize("wrong", [{"timeout_s": 60}, {"lease_s": 60}, {"timeout_s": 0}])
def test_times_that_give_every_batch_up_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="every batch is given up"):
        ServerSettings(**{"timeout_s": 5, "lease_s": 5, "hold_s": 30, **wrong})  # pyright: ignore
