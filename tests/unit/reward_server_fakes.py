"""A hand fake of the replay, rewards that do what they are told, and a server of them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from buffer.records import Record, Scores, record_id
from reward_servers.base import RewardModel, Scored
from reward_servers.server import RewardServer, ServerSettings

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
        self.renewals = threading.Semaphore(0)
        self.waits: list[float] = []
        self.returned: list[str] = []
        self.settled = threading.Event()

    def claim(
        self, owner: str, *, max_records: int, block_s: float, lease_s: float
    ) -> list[Record]:
        self.waits.append(block_s)
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
        self.renewals.release()
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
        thread.join(60)
    assert not thread.is_alive(), "the server did not stop"


def serve(
    replay: FakeReplay,
    rewards: dict[str, RewardModel] | None = None,
    settings: ServerSettings = FAST,
    **options: Any,
) -> RewardServer:
    server = RewardServer(
        replay,
        decode,
        rewards or {"light": Brightness()},
        owner="r-0",
        settings=settings,
        **options,
    )
    with running(server):
        assert replay.settled.wait(60), "some records never ended"
    return server
