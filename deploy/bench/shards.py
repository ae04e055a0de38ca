"""What a replay gains by more servers: the same work of four client processes on one, two and four.

The clock tells what this machine makes of it, whose cores clients and servers share. What servers
with cores of their own would make of it is told by the processor time of the busiest of them: no
rate is above one that keeps it busy all the time.
"""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from deploy.bench.replay import Item, Process
from deploy.bench.replay_stores import TABLES
from deploy.bench.timing import Row, Way, Work, measure, spread

SERVERS = (4, 2, 1)
"""The last is what the others are compared to."""
_CLIENTS = 4
_ITEM = Item("32 KiB", (2, 4, 32, 64), stored=2048, drawn=8192)
_FEW = Item("32 KiB", (2, 4, 32, 64), stored=64, drawn=128)


def shards(*, repeats: int, few: bool) -> list[Row]:
    """Inserts with their commits, and draws of single slices."""
    item = _FEW if few else _ITEM
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        crews = [stack.enter_context(Crew(count)) for count in SERVERS]
        for name, amount, orders in (
            ("insert and commit", item.stored, _inserts(item)),
            ("draw slices", item.drawn, _draws(item)),
        ):
            work = Work(
                f"{name}, {item.name}, {_CLIENTS} clients",
                [Way(crew.name, crew.prepared(orders)) for crew in crews],
                {"items": amount},
                calls=1,
            )
            rows += measure(work, repeats=repeats, least_s=0.0)
            rows += _of_busiest(work, crews, repeats)
    return rows


class Crew(contextlib.ExitStack):
    """So many servers, and clients of all of them.

    Attributes:
        busy_s: of every piece of work, the processor time of each server.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.name = f"{count} server{'s' * (count > 1)}"
        self.busy_s: list[list[float]] = []
        folder = Path(tempfile.mkdtemp(prefix="fleetune-bench-"))
        self.callback(shutil.rmtree, folder, ignore_errors=True)
        servers = [self.enter_context(EmbeddedServer(folder / str(n))) for n in range(count)]
        self._servers = [connect(server.url, timeout_s=60) for server in servers]
        place = " ".join(server.url for server in servers)
        self._clients = [
            self.enter_context(Process("fleetune", place, sys.executable)) for _ in range(_CLIENTS)
        ]

    def prepared(self, orders: Sequence[dict[str, Any]]) -> Callable[[int], Callable[[], None]]:
        """What makes the clients ready, one order each, and then sets them going."""

        def prepare(calls: int) -> Callable[[], None]:
            if orders[0]["do"] == "insert":
                self._each(self._clients[:1], [{"do": "clear"}])
            self._each(self._clients, orders)
            return go

        def go() -> None:
            before = self._busy()
            self._each(self._clients, [{"do": "go"}] * _CLIENTS)
            self.busy_s.append([now - then for now, then in zip(self._busy(), before, strict=True)])

        return prepare

    def _each(self, clients: Sequence[Process], orders: Sequence[dict[str, Any]]) -> None:
        for client, order in zip(clients, orders, strict=True):
            client.tell(order)
        for client in clients:
            client.answer()

    def _busy(self) -> list[float]:
        told: list[Any] = [server.info("cpu") for server in self._servers]
        return [cpu["used_cpu_user"] + cpu["used_cpu_sys"] for cpu in told]


def _inserts(item: Item) -> list[dict[str, Any]]:
    share = item.stored // _CLIENTS
    return [
        {"do": "insert", "first": number * share, "count": share, "shape": item.shape}
        for number in range(_CLIENTS)
    ]


def _draws(item: Item) -> list[dict[str, Any]]:
    order = {
        "do": "sample",
        "items": item.stored,
        "shape": item.shape,
        "table": TABLES[0],
        "batch": item.batch,
        "batches": item.drawn // item.batch // _CLIENTS,
        "slots": [0],
    }
    return [order | {"seed": number} for number in range(_CLIENTS)]


def _of_busiest(work: Work, crews: Sequence[Crew], repeats: int) -> list[Row]:
    """Items for each second of processor time of the server that had most of it."""
    [amount] = work.amounts.values()
    rates = [amount / np.max(crew.busy_s[-repeats:], axis=1) for crew in crews]
    return [
        Row(
            work.name,
            crew.name,
            "items/CPU s of the busiest",
            spread(rate),
            None if crew is crews[-1] else spread(rate / rates[-1]),
        )
        for crew, rate in zip(crews, rates, strict=True)
    ]
