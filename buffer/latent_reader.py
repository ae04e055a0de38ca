"""Slices of trajectories off the server: few bytes a reply, checked while the next ones come.

A server builds a whole reply before the client has read any of it, and a reply of many megabytes
costs more than its bytes: both sides then work in memory that is new to them. So slices come in
small replies, over two connections: one is read while what the other has brought is checked.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from buffer.codec import decode_latent
from buffer.errors import CodecError
from buffer.redis_link import RedisLink

log = logging.getLogger(__name__)
Place = tuple[str, int]
"""Record id, and slot in its `steps`."""

_REPLY_BYTES = 256 * 1024
_CONNECTIONS = 2
_FEW = 16
"""Slices in the first reply, whose size is not known yet."""
_MANY = 128
"""Slices in one reply at most."""


class LatentReader:
    """Reads single latents of a run."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._in_one = _FEW
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def read(self, wanted: Sequence[Place]) -> list[np.ndarray | None]:
        """The latent of each place: fp16 [C, H, W], read-only; None where there is none.

        A damaged latent is as good as evicted.
        """
        first = self._read_some(wanted[: self._in_one])
        rest = wanted[len(first) :]
        if not rest:
            return first
        parts = [rest[at : at + self._in_one] for at in range(0, len(rest), self._in_one)]
        return [latent for part in (first, *self._each(parts)) for latent in part]

    def close(self) -> None:
        """Ends the threads; the next `read` starts them again."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def _each(self, parts: Sequence[Sequence[Place]]) -> Sequence[list[np.ndarray | None]]:
        if len(parts) == 1:
            return [self._read_some(parts[0])]
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="latents")
            threads = self._threads
        return list(threads.map(self._read_some, parts))

    def _read_some(self, places: Sequence[Place]) -> list[np.ndarray | None]:
        runs = [(name, [slot for _, slot in run]) for name, run in groupby(places, itemgetter(0))]

        def fill(pipe: Any) -> None:
            for record_id, slots in runs:
                pipe.hmget(self._link.record_key(record_id), slots)

        frames: list[Any] = []
        for answer, (_, slots) in zip(self._link.ask_each(fill), runs, strict=True):
            frames += [answer] * len(slots) if isinstance(answer, Exception) else answer
        largest = max((len(frame) for frame in frames if isinstance(frame, bytes)), default=0)
        if largest:
            self._in_one = min(max(1, _REPLY_BYTES // largest), _MANY)
        return [_latent_or_none(*each) for each in zip(frames, places, strict=True)]


def _latent_or_none(frame: Any, place: Place) -> np.ndarray | None:
    if frame is None:
        return None
    try:
        if isinstance(frame, Exception):
            raise CodecError(str(frame))
        return decode_latent(frame, place)
    except CodecError as error:
        log.warning("latent %d of %s is unreadable: %s", place[1], place[0], error)
        return None
