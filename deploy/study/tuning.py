"""Which try of an arm is best, what all tries have spent, and the table of them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.run.plan import has_begun
from deploy.study.file import Cell, Study, cells_of
from deploy.study.tables import LACKING, tflops

TUNING_FILE = "tuning.json"


@dataclass(frozen=True)
class Tried:
    """What a try came to; None: it is not finished, or has no such score.

    Attributes:
        tflops: of sampling and learning, in 10¹².
    """

    score: float | None = None
    reward_queries: int | None = None
    tflops: float | None = None

    @classmethod
    def of(cls, cell: Cell, score: str) -> "Tried":
        """A run's."""
        summary = cell.summary
        if summary is None:
            return cls()
        return cls(summary["after"].get(score), summary["reward_queries"], tflops(summary))


@dataclass(frozen=True)
class Chosen:
    """What tuning an arm came to.

    Attributes:
        values: overrides of the chosen try; None: no try has a score.
        tries: in the file's order.
        kept: whether runs have begun with it, so that it stays, whatever a try may come to later.
    """

    values: tuple[str, ...] | None
    tries: tuple[Tried, ...]
    kept: bool = False


def choose(
    study: Study, name: str, tries: Mapping[str, Sequence[Cell]], folder: Path
) -> dict[str, Chosen]:
    """The best try of every arm that has some, the first of equal ones.

    A choice that runs have begun with stays, whatever becomes of a try that had failed then.

    Args:
        folder: of the study.
    """
    if study.tuning is None:
        return {}
    recorded, found = recorded_choices(study, folder), {}
    for arm, cells in tries.items():
        tried = tuple(Tried.of(cell, study.tuning.score) for cell in cells)
        scores = [each.score for each in tried]
        known = [score for score in scores if score is not None]
        values = study.arms[arm].tries[scores.index(max(known))] if known else None
        earlier = recorded.get(arm)
        kept = earlier is not None and _has_begun_with(study, name, arm, earlier)
        found[arm] = Chosen(earlier if kept else values, tried, kept)
    return found


def recorded_choices(study: Study, folder: Path) -> dict[str, tuple[str, ...]]:
    """Tries of the file that an earlier start had chosen, by arm."""
    try:
        told = json.loads((folder / TUNING_FILE).read_text(encoding="utf-8"))
        choices = {arm: tuple(each["values"]) for arm, each in told.items() if each["values"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {
        arm: values
        for arm, values in choices.items()
        if arm in study.arms and values in study.arms[arm].tries
    }


def choices_json(chosen: Mapping[str, Chosen]) -> str:
    """What `recorded_choices` reads, with what every try has spent."""
    return json.dumps({arm: asdict(each) for arm, each in chosen.items()}, indent=1)


def _has_begun_with(study: Study, name: str, arm: str, values: tuple[str, ...]) -> bool:
    """Whether a run of the study's seeds was started with a choice."""
    cells = cells_of(study, name, {arm: values})
    return any(has_begun(cell.config, os.environ) and not cell.changed_settings() for cell in cells)


def tuning_rows(study: Study, chosen: Mapping[str, Chosen]) -> list[list[str]]:
    """A head and a row a try: the chosen ones are marked, and where a better one may lie beyond the
    values that were tried, or has come too late; empty without tuning."""
    if study.tuning is None:
        return []
    rows = [["arm", "try", study.tuning.score, "reward queries", "TFLOPs", "chosen"]]
    for arm, told in chosen.items():
        tries = study.arms[arm].tries
        best = max((t.score for t in told.tries if t.score is not None), default=None)
        for values, tried in zip(tries, told.tries, strict=True):
            shown = [
                "none" if tried.score is None else f"{tried.score:.4f}",
                LACKING if tried.reward_queries is None else f"{tried.reward_queries:,}",
                LACKING if tried.tflops is None else f"{tried.tflops:,.1f}",
            ]
            marks = []
            if values == told.values:
                late = tried.score != best
                kept = ["kept, as its runs had begun when a better one ended"] if late else []
                marks = ["yes", *kept, *_at_an_end(tries, values)]
            rows.append([arm, " ".join(values), *shown, ", ".join(marks)])
    return rows


def _at_an_end(tries: Sequence[Sequence[str]], chosen: Sequence[str]) -> list[str]:
    """Settings of which the chosen number is the least or the most of at least three, in words."""
    told = []
    tried = [dict(override.split("=", 1) for override in each) for each in tries]
    for name, value in (override.split("=", 1) for override in chosen):
        try:
            numbers = {float(each[name]) for each in tried if name in each}
        except ValueError:
            continue
        if len(numbers) > 2 and float(value) in (min(numbers), max(numbers)):
            told.append(f"{'least' if float(value) == min(numbers) else 'most'} {name} of all")
    return told
