"""The replay beside its peers: the same items in and out, one to four client processes.

Redis-protocol stores share one embedded server on a loopback port with its append-only file on;
Reverb has a server process of its own and is left out unless `--reverb PYTHON` names the Python of
an environment with `dm-reverb[tensorflow]==0.14.0`. Clients are processes
(`deploy.bench.replay_client`) that are told to go at once; the clock stops with the last answer.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buffer.connection import Client, connect
from buffer.embedded import EmbeddedServer
from deploy.bench.replay_stores import TABLES
from deploy.bench.timing import Row, Way, Work, measure, spread

_ROOT = Path(__file__).resolve().parents[2]
CLIENTS = (1, 2, 4)


@dataclass(frozen=True)
class Item:
    """What is stored: a trajectory [S, C, H, W] in fp16.

    Args:
        stored: items to draw from, and inserted in one repeat.
        drawn: items of one repeat, in batches.
    """

    name: str
    shape: tuple[int, int, int, int]
    stored: int
    drawn: int
    batch: int = 32

    @property
    def slots(self) -> int:
        """Latents of one item."""
        return self.shape[0]

    @property
    def bytes(self) -> int:
        """Of one item's latents."""
        return int(np.prod(self.shape)) * 2


ITEMS = (
    Item("16 KiB", (1, 4, 32, 64), stored=2048, drawn=4096),
    Item("32 KiB", (1, 4, 64, 64), stored=2048, drawn=4096),
    Item("256 KiB", (2, 4, 128, 128), stored=384, drawn=1024),
    Item("1.6 MiB", (50, 4, 64, 64), stored=64, drawn=256, batch=8),
)
"""Half a latent of SD 1.5, one, two of SDXL, and 50 of SD 1.5."""
_FEW = (Item("16 KiB", (1, 4, 32, 64), stored=64, drawn=64),)
_SLICE = 25
_SLICES_DRAWN = 512


_PRIORITISED = ("fleetune", "reverb")
"""Stores that draw by priority; the others have no priorities."""
_REFERENCE = "redis-py"


def replay(reverb_python: Path | None, *, repeats: int, few: bool) -> list[Row]:
    """Rates of all stores, and how many bytes travel for one that is used."""
    rows: list[Row] = []
    with Bench(reverb_python) as bench:
        for item in _FEW if few else ITEMS:
            for clients in (1,) if few else CLIENTS:
                for work in bench.works(item, clients):
                    rows += measure(work, repeats=repeats, least_s=0.0)
            rows += bench.amplification(item)
    return rows


class Bench(contextlib.ExitStack):
    """Servers, client processes, and what they are told."""

    def __init__(self, reverb_python: Path | None) -> None:
        super().__init__()
        folder = Path(tempfile.mkdtemp(prefix="fleetune-bench-"))
        self.callback(shutil.rmtree, folder, ignore_errors=True)
        server = self.enter_context(EmbeddedServer(folder / "redis", transport="tcp"))
        self._redis: Client = connect(server.url, timeout_s=60)
        self._files = folder / "files"
        places = {"fleetune": server.url, "one reply": f"{server.url}/1", "files": str(self._files)}
        pythons = {}
        if reverb_python is not None:
            pythons["reverb"] = str(reverb_python)
            places["reverb"] = f"127.0.0.1:{_free_port()}"
            self.enter_context(Process("reverb server", places["reverb"], str(reverb_python)))
        # The last of all ways is what the others are compared to.
        places[_REFERENCE] = f"{server.url}/2"
        self._crews = {
            store: [
                self.enter_context(Process(store, place, pythons.get(store, sys.executable)))
                for _ in range(max(CLIENTS))
            ]
            for store, place in places.items()
        }

    def works(self, item: Item, clients: int) -> Iterator[Work]:
        """Inserting items, then drawing whole ones, then single slices of long ones."""
        many = f"{item.name}, {clients} client{'s' if clients > 1 else ''}"
        yield self._work(f"insert {many}", item.stored, item.bytes, self._insert(item, clients))
        self._fill(item)
        for table in TABLES:
            sample = self._sample(item, clients, table, range(item.slots), item.drawn)
            work = self._work(f"sample {many}, {table}", item.drawn, item.bytes, sample)
            if table != TABLES[0]:
                kept = [way for way in work.ways if way.name in (*_PRIORITISED, _REFERENCE)]
                work = dataclasses.replace(work, ways=kept)
            yield work
        if item.slots > _SLICE:
            sample = self._sample(item, clients, TABLES[0], [_SLICE], _SLICES_DRAWN)
            yield self._work(
                f"one slice of {many}", _SLICES_DRAWN, item.bytes // item.slots, sample
            )

    def amplification(self, item: Item) -> Iterator[Row]:
        """Bytes off the Redis server for each byte of a slice that the learner uses."""
        slots = [min(_SLICE, item.slots - 1)]
        client = self._crews["fleetune"][0]
        self._sample(item, 1, TABLES[0], slots, item.drawn)("fleetune")
        before = self._bytes_sent()
        client.tell({"do": "go"})
        used = client.answer()["bytes"]
        moved = self._bytes_sent() - before
        yield Row(
            f"one slice of {item.name}",
            "fleetune",
            "bytes moved/byte used",
            spread([moved / used]),
            None,
        )

    def _work(
        self, name: str, amount: int, size: int, prepare: Callable[[str], Callable[[], object]]
    ) -> Work:
        ways = [Way(store, lambda calls, s=store: prepare(s)) for store in self._crews]
        return Work(name, ways, {"items": amount, "MB": amount * size / 1e6}, calls=1)

    def _insert(self, item: Item, clients: int) -> Callable[[str], Callable[[], object]]:
        def prepare(store: str) -> Callable[[], object]:
            """An empty store, and so many processes that fill it."""
            self._clear(store)
            share = item.stored // clients
            return self._told(
                store,
                [
                    {"do": "insert", "first": i * share, "count": share, "shape": item.shape}
                    for i in range(clients)
                ],
            )

        return prepare

    def _sample(
        self, item: Item, clients: int, table: str, slots: Sequence[int], drawn: int
    ) -> Callable[[str], Callable[[], object]]:
        def prepare(store: str) -> Callable[[], object]:
            """Processes that each draw their share from a store that is full."""
            order = {
                "do": "sample",
                "items": item.stored,
                "shape": item.shape,
                "table": table,
                "batch": item.batch,
                "batches": drawn // item.batch // clients,
                "slots": list(slots),
            }
            return self._told(store, [order | {"seed": i} for i in range(clients)])

        return prepare

    def _told(self, store: str, orders: Sequence[dict[str, Any]]) -> Callable[[], object]:
        """Clients made ready; what sets them going and waits for the last."""
        crew = self._crews[store][: len(orders)]
        for client, order in zip(crew, orders, strict=True):
            client.tell(order)
        for client in crew:
            client.answer()

        def go() -> None:
            for client in crew:
                client.tell({"do": "go"})
            for client in crew:
                client.answer()

        return go

    def _fill(self, item: Item) -> None:
        for store, crew in self._crews.items():
            self._clear(store)
            for table in TABLES if store == "reverb" else TABLES[:1]:
                order = {"do": "insert", "first": 0, "count": item.stored, "shape": item.shape}
                crew[0].tell(order | {"table": table})
                crew[0].answer()
                crew[0].tell({"do": "go"})
                crew[0].answer()

    def _clear(self, store: str) -> None:
        self._crews[store][0].tell({"do": "clear"})
        self._crews[store][0].answer()

    def _bytes_sent(self) -> int:
        info: Any = self._redis.info("stats")
        return info["total_net_output_bytes"]


class Process:
    """A client process; ends with the block."""

    def __init__(self, store: str, place: str, python: str) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "deploy.bench.replay_client"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        self.tell({"store": store, "place": place})
        self.answer()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def tell(self, order: dict[str, Any]) -> None:
        """Sends one order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Waits for what it answers.

        Raises:
            RuntimeError: it has ended; its reason is on stderr.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client ended with status {self._process.wait()}")
        return json.loads(line)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
