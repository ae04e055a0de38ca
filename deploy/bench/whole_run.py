"""Where the time of a run went, from its `summary.json`: a look back, nothing is measured here."""

import json
from pathlib import Path
from typing import Any

from deploy.bench.timing import Row, spread
from deploy.run.files import SUMMARY_FILE


def shares(folder: Path) -> list[Row]:
    """Seconds of the learner's phases, and of the stages of every sampler and reward server.

    Raises:
        ValueError: the folder holds no finished run.
    """
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no summary of a run: {error}") from error
    wall_s = float(summary["wall_s"])
    rows = [_row("run", "wall time", wall_s, wall_s)]
    known_s = summary.get("learner_seconds", {})
    rows += [_row("learner", phase, seconds, wall_s) for phase, seconds in known_s.items()]
    for worker, stats in summary.get("workers", {}).items():
        rows += [_row(worker, stage, value, wall_s) for stage, value in _stages(stats)]
    return rows


def newest(runs: Path) -> Path | None:
    """The run that was summarised last."""
    summaries = runs.glob(f"*/{SUMMARY_FILE}")
    return max((path.parent for path in summaries), key=_age, default=None)


def _age(folder: Path) -> float:
    return (folder / SUMMARY_FILE).stat().st_mtime


def _stages(stats: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (name.removesuffix("_s"), float(value))
        for name, value in stats.items()
        if name.endswith("_s")
    ]


def _row(who: str, what: str, seconds: float, wall_s: float) -> Row:
    share = spread([seconds / wall_s]) if wall_s > 0 else None
    return Row(who, what, "s", spread([seconds]), share)
