"""What a process needs to know to use a run's replay, on one server or on several.

Tickets are numbered over the whole run. The server of ticket n is number n mod the number of
servers, and so is that of everything that is made of it: no server has to know of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from buffer.urls import urls_in

Remover = Literal["oldest", "lowest_priority"]

PUT_SHARE = 0.9
"""Of a server's maxmemory; beyond it no groups are put. What is left is for scores, which make
room."""
MOST_QUARANTINED = 1000
"""Failed records on one server beyond this number are forgotten, oldest first: their latents cost
memory."""


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """All that another process needs to use the same replay.

    Attributes:
        url: of the server; or those of several, with spaces between them.
        capacity_records: committed records above this number are evicted.
        capacity_bytes: and those above this size of all of them; 0 for no such limit.
        remover: which are evicted: those of the smallest tickets, or of the lowest priority.
        max_attempts: a record is handed out this often before it is quarantined.
        timeout_s: longest wait for one answer of a server.
        outage_s: a server that does not answer is asked again for so long.
        shard: the number of the server at `url` among all of the run, from 0.
        shards: how many these are.
        start: token of the run's start that the process is of, `buffer.run_owner`; '' for a tool.
    """

    url: str = field(repr=False)
    run: str
    capacity_records: int
    capacity_bytes: int = 0
    remover: Remover = "oldest"
    max_attempts: int = 3
    timeout_s: float = 10.0
    outage_s: float = 0.0
    shard: int = 0
    shards: int = 1
    start: str = ""

    def __post_init__(self) -> None:
        lowest = {"capacity_records": 1, "max_attempts": 1, "capacity_bytes": 0, "outage_s": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0; got {self.timeout_s}")
        if not 0 <= self.shard < self.shards:
            raise ValueError(f"shard {self.shard} is none of 0 to {self.shards - 1}")

    def of_shards(self) -> Sequence["ReplaySettings"]:
        """The settings of each server that `url` names.

        Each has its share of the capacity, and no patience: whoever has others to ask does not
        wait for one.
        """
        urls = urls_in(self.url)
        return [
            replace(
                self,
                url=url,
                capacity_records=-(-self.capacity_records // len(urls)),
                capacity_bytes=-(-self.capacity_bytes // len(urls)),
                outage_s=0.0,
                shard=number,
                shards=len(urls),
            )
            for number, url in enumerate(urls)
        ]

    def first_ticket(self, at_least: int = 0) -> int:
        """The smallest ticket of this server that is not below `at_least`."""
        return at_least + (self.shard - at_least) % self.shards
