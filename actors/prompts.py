"""Which prompt and which seed belong to a ticket.

Both are functions of the ticket's number and the run's seed alone, so a ticket that is issued
twice, to any sampler, in any process, asks for the same group. Nothing is stored.
"""

import hashlib
from collections.abc import Sequence


def seed_of(run_seed: int, ticket: int) -> int:
    """The 64-bit seed of a ticket's group: a hash, so neighbouring tickets share nothing."""
    return int.from_bytes(_digest(f"{run_seed}:{ticket}"), "big")


class PromptSource:
    """Prompts in a seeded random order, every one once before any twice.

    Tickets 0 … n−1 are the first pass over n prompts, n … 2n−1 the second in another order.
    """

    def __init__(self, prompts: Sequence[str], *, run_seed: int) -> None:
        if not prompts:
            raise ValueError("prompts is empty; give at least one prompt")
        self._prompts = tuple(prompts)
        self._run_seed = run_seed
        self._order_of_epoch: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._prompts)

    def prompt_of(self, ticket: int) -> str:
        """The prompt of a ticket."""
        if ticket < 0:
            raise ValueError(f"ticket is {ticket}; tickets count from 0")
        epoch, position = divmod(ticket, len(self._prompts))
        return self._prompts[self._order(epoch)[position]]

    def seed_of(self, ticket: int) -> int:
        """The 64-bit seed of a ticket's group."""
        return seed_of(self._run_seed, ticket)

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._order_of_epoch:
            # Samplers straddle the border of two passes for a while: keep both orders.
            while len(self._order_of_epoch) > 1:
                self._order_of_epoch.pop(min(self._order_of_epoch))
            self._order_of_epoch[epoch] = self._shuffled(epoch)
        return self._order_of_epoch[epoch]

    def _shuffled(self, epoch: int) -> list[int]:
        # Sorting by a hash, unlike a library's shuffle, cannot change with a version.
        keys = [_digest(f"{self._run_seed}:{epoch}:{i}") for i in range(len(self._prompts))]
        return sorted(range(len(keys)), key=keys.__getitem__)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
