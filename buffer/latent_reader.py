"""Slices of trajectories off the server, about a mebibyte a reply.

A server builds a whole reply before the client has read any of it, so a reply must not grow with
the draw; and one that is small costs the way there and back.
"""

import logging
from collections.abc import Sequence
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

_REPLY_BYTES = 2**20
_FEW = 16
"""Slices in the first reply, whose size is not known yet."""


class LatentReader:
    """Reads single latents of a run."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._in_one = _FEW

    def read(self, wanted: Sequence[Place]) -> list[np.ndarray | None]:
        """The latent of each place: fp16 [C, H, W], read-only; None where there is none.

        A damaged latent is as good as evicted.
        """
        latents: list[np.ndarray | None] = []
        while len(latents) < len(wanted):
            places = wanted[len(latents) : len(latents) + self._in_one]
            frames = self._frames(places)
            largest = max((len(frame) for frame in frames if isinstance(frame, bytes)), default=0)
            if largest:
                self._in_one = max(1, _REPLY_BYTES // largest)
            latents += map(_latent_or_none, frames, places)
        return latents

    def _frames(self, places: Sequence[Place]) -> list[Any]:
        """What the server has at each place: bytes, None, or an error where a key is odd."""
        runs = [(name, [slot for _, slot in run]) for name, run in groupby(places, itemgetter(0))]

        def fill(pipe: Any) -> None:
            for record_id, slots in runs:
                pipe.hmget(self._link.record_key(record_id), slots)

        frames: list[Any] = []
        for answer, (_, slots) in zip(self._link.ask_each(fill), runs, strict=True):
            frames += [answer] * len(slots) if isinstance(answer, Exception) else answer
        return frames


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
