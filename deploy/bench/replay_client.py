"""A process that uses a store as it is told on stdin, and says on stdout when it is done.

One JSON object a line, each answered by one. The first names the store and its place, which may
hold a password. Then {"do": "clear"} empties it, {"do": "insert", ...} and {"do": "sample", ...}
make ready, and {"do": "go"} does what was made ready and answers how many bytes were read. The
clock is with whoever asks.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

import numpy as np

from deploy.bench.replay_stores import STORES, TABLES, Store, serve_reverb

_DISTINCT = 8
"""Different items that are inserted in turn: none that a cache or codec could know."""


def main() -> None:
    # A library's own printing must not mix with the answers.
    """The command."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders = map(json.loads, sys.stdin)
    first = next(orders)
    if first["store"] == "reverb server":
        server = serve_reverb(int(first["place"].rpartition(":")[2]))
        _answer(answers, 0)
        server.wait()
    store = STORES[first["store"]](first["place"])
    _answer(answers, 0)
    ready: Callable[[], int | None] = _nothing
    for order in orders:
        what = order.pop("do")
        if what == "go":
            _answer(answers, ready() or 0)
            continue
        if what == "clear":
            store.clear()
        else:
            ready = {"insert": _insert, "sample": _sample}[what](store, **order)
        _answer(answers, 0)


def _nothing() -> None:
    """What is ready before anything was asked for."""


def _insert(
    store: Store, *, first: int, count: int, shape: Sequence[int], table: str = TABLES[0]
) -> Callable[[], None]:
    rng = np.random.default_rng(first)
    some = [rng.standard_normal(shape).astype(np.float16) for _ in range(_DISTINCT)]
    return store.prepare_insert(first, [some[i % _DISTINCT] for i in range(count)], table=table)


def _sample(
    store: Store,
    *,
    items: int,
    shape: Sequence[int],
    table: str,
    batch: int,
    batches: int,
    slots: Sequence[int],
    seed: int,
) -> Callable[[], int]:
    store.prepare_sample(items, table, shape)
    rng = np.random.default_rng(seed)

    def run() -> int:
        return sum(store.sample(batch, rng, slots) for _ in range(batches))

    run()  # Connections, caches, and what is fetched ahead.
    return run


def _answer(stream: TextIO, num_bytes: int) -> None:
    stream.write(json.dumps({"bytes": num_bytes}) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
