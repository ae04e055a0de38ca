"""One rank among all: what differs between ranks, and the seed that does not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Seat:
    """A rank's number, how many there are, and the run's seed.

    Attributes:
        seed: the same on every rank: random draws are of whole batches, and each rank takes its
            `share` of them.
    """

    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def share(self) -> slice:
        """The rows of a whole batch that are this rank's."""
        return slice(self.rank, None, self.ranks)

    @property
    def is_first(self) -> bool:
        """Rank 0 alone admits tickets, publishes, reports and writes what all ranks share."""
        return self.rank == 0
