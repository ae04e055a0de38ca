"""Where the time of a worker goes, by stage, for whoever asks from another thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageSeconds:
    """Seconds by stage since the start; of the stage that is under way, those until now.

    Stages follow each other, on one thread, and do not nest.

        seconds = StageSeconds("wait", "sample")
        with seconds.of("sample"):
            ...
        seconds.stats()  # {"wait_s": 0.0, "sample_s": 1.3}
    """

    def __init__(self, *stages: str) -> None:
        self._ended: dict[str, float] = dict.fromkeys(stages, 0.0)
        self._under_way: tuple[str, float] | None = None
        self._lock = threading.Lock()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Counts the block to a stage."""
        begun = time.monotonic()
        with self._lock:
            self._under_way = stage, begun
        try:
            yield
        finally:
            with self._lock:
                self._ended[stage] += time.monotonic() - begun
                self._under_way = None

    def stats(self) -> dict[str, float]:
        """`<stage>_s` of every stage."""
        with self._lock:
            seconds, under_way = dict(self._ended), self._under_way
        if under_way is not None:
            stage, begun = under_way
            seconds[stage] += time.monotonic() - begun
        return {f"{stage}_s": round(value, 3) for stage, value in seconds.items()}
