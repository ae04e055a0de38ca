"""A callback as a user might write it; found by the driver through PYTHONPATH."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Notes:
    """Writes what it is told into the run's folder, one JSON value a line."""

    def on_start(self, run: Any) -> None:
        self._file = (run.folder / "called.jsonl").open("a", encoding="utf-8")
        self._note("start", run.name)

    def on_points(self, points: Sequence[Any]) -> None:
        for point in points:
            self._note("point", vars(point))

    def on_evaluation(
        self, cycle: int, metrics: Mapping[str, float], pictures: Path | None
    ) -> None:
        self._note("evaluation", [cycle, pictures and pictures.name])

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._note("end", summary["status"])

    def _note(self, what: str, value: object) -> None:
        self._file.write(json.dumps([what, value]) + "\n")
        self._file.flush()
