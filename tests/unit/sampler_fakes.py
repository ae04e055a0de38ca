"""Hand-made tickets, weights and policy, and a sampler's loop over them."""

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from actors.prompts import PromptSource
from actors.rollout import Group, Rollout
from actors.worker import SamplerWorker, WorkerSettings
from buffer.errors import ReplayFull
from buffer.records import Record, Ticket
from learner.policy.board import Weights

FAST = WorkerSettings(idle_s=0.001, backoff_s=0.001, max_backoff_s=0.002, max_failures=3)


class FakeTickets:
    """Issues the given tickets once; what comes back is issued again."""

    def __init__(self, *versions: int) -> None:
        self.waiting = [Ticket(number, version) for number, version in enumerate(versions)]
        self.leased: dict[int, Ticket] = {}
        self.groups: dict[int, list[Record]] = {}
        self.failed: dict[tuple[int, int], str] = {}
        self.renewals = 0
        self.renewed = threading.Semaphore(0)
        self.failing_puts = 0
        self.full_puts = 0
        self.on_empty: Callable[[], None] = lambda: None

    def lease_ticket(self, owner: str, *, lease_s: float) -> Ticket | None:
        if not self.waiting:
            self.on_empty()
            return None
        ticket = self.waiting.pop(0)
        self.leased[ticket.number] = ticket
        return ticket

    def renew_ticket(self, ticket: Ticket, *, lease_s: float) -> bool:
        self.renewals += 1
        self.renewed.release()
        return ticket.number in self.leased

    def return_ticket(self, ticket: Ticket) -> None:
        self.waiting.insert(0, self.leased.pop(ticket.number))

    def put_group(self, ticket: int, records: Sequence[Record], failed: Mapping[int, str]) -> bool:
        if self.failing_puts:
            self.failing_puts -= 1
            raise ConnectionError("the server is away")
        if self.full_puts:
            self.full_puts -= 1
            raise ReplayFull("no room")
        self.leased.pop(ticket, None)
        new = ticket not in self.groups
        self.groups.setdefault(ticket, list(records))
        self.failed.update({(ticket, member): reason for member, reason in failed.items()})
        return new


class FakeWeights:
    """A board whose version the test sets."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.life = 0
        self.broken = False

    def latest(self) -> tuple[int, int]:
        return self.version, 1000 * self.life + self.version

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        if self.broken:
            raise ConnectionError("the publisher is gone")
        return self.version, {"w": np.array([self.version + 100 * self.life], np.float32)}


class FakePolicy:
    """Latents are the seed's low bits plus the weight; one hook runs before every batch."""

    def __init__(self) -> None:
        self.weight = -1.0
        self.batches: list[list[int]] = []
        self.before_sampling: Callable[[], object] = lambda: None

    def load(self, weights: Mapping[str, np.ndarray], /) -> None:
        self.weight = float(weights["w"][0])

    def sample(self, groups: Sequence[Group]) -> list[Rollout]:
        self.before_sampling()
        self.batches.append([group.ticket for group in groups])
        return [self._rollout(group) for group in groups]

    def _rollout(self, group: Group) -> Rollout:
        latents = np.full((2, 2, 1, 2, 2), group.seed % 97 + self.weight, np.float16)
        return Rollout(steps=(1, 2), scored=(0, 1), latents=latents)


class Scene:
    """A worker and its three fakes."""

    def __init__(
        self,
        *ticket_versions: int,
        published: int = 0,
        loaded: int = -1,
        settings: WorkerSettings = FAST,
        on_hang: Callable[[], object] = lambda: None,
    ) -> None:
        self.tickets = FakeTickets(*ticket_versions)
        self.weights = FakeWeights(published)
        self.policy = FakePolicy()
        self.worker = SamplerWorker(
            self.tickets,
            PromptSource(["a cat", "a dog", "a fox"], run_seed=1),
            self.weights,
            self.policy,
            owner="sampler-0",
            settings=settings,
            loaded_version=loaded,
            on_hang=on_hang,
        )

    def run_until_empty(self) -> None:
        self.tickets.on_empty = self.worker.stop
        self.worker.run()
