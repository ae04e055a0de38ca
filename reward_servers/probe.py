"""What a reward that is down is asked with: a latent whose picture it has scored before."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from buffer.records import START, IndexEntry, LogEntry

Probe = tuple[np.ndarray, str]
"""A latent [1, C, H, W] whose picture every reward has scored, and its prompt."""

_PAGE = 1000
_TRIED = 16


class ScoredRecords(Protocol):
    """The part of the replay buffer that tells what was scored."""

    def tail(self, after: str, *, max_entries: int, block_s: float = 0.0) -> list[LogEntry]:
        """See `Replay.tail`."""
        ...

    def read_latents(self, wanted: Sequence[tuple[str, int]]) -> list[np.ndarray | None]:
        """See `Replay.read_latents`."""
        ...


def scored_before(replay: ScoredRecords) -> Probe | None:
    """Of a record that the replay holds with its scores; None: it holds none."""
    position = START
    while entries := replay.tail(position, max_entries=_PAGE):
        position = entries[-1].position
        # The newest of the page: older ones may be evicted.
        scored = [entry for entry in entries if isinstance(entry, IndexEntry)][-_TRIED:]
        latents = replay.read_latents([(entry.record_id, entry.scored[0]) for entry in scored])
        for entry, latent_CHW in zip(scored, latents, strict=True):
            if latent_CHW is not None:
                return latent_CHW[None], entry.prompt
    return None
