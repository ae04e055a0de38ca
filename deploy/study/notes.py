"""What a reader of a study's tables has to know beside them, in sentences."""

import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from deploy.run.plan import has_begun
from deploy.study.file import Budget, Cell, Study
from deploy.study.tables import LACKING, Finished, Run, tflops


def beyond_budget(budget: Budget | None, results: Finished) -> list[str]:
    """Arms that spent another number of operations than the budget allows, in words."""
    if budget is None or budget.tflops is None:
        return []
    told = []
    for arm, found in results.items():
        if not found:
            continue
        mean = statistics.mean(tflops(summary) for _, summary in found)
        if abs(mean / budget.tflops - 1) > budget.slack:
            told.append(f"{arm} spent {mean:,.1f} TFLOPs, the budget is {budget.tflops:,.1f}")
    return told


def unlike_versions(runs: Sequence[Run]) -> list[str]:
    """What runs of the study differ in, of their code and libraries, in words.

    Their platform is left out: it names a kernel's build.
    """
    known = [summary.get("versions", {}) for _, summary in runs]
    told = []
    for name in dict.fromkeys(name for each in known for name in each if name != "platform"):
        counts = Counter(each.get(name, "unknown") for each in known)
        if len(counts) > 1:
            shares = ", ".join(f"{value} ({count})" for value, count in counts.items())
            told.append(f"runs were made with different versions of {name}: {shares}")
    return told


def without_sampling(runs: Sequence[Run]) -> list[str]:
    """Runs whose operations lack those of sampling, in words."""
    names = [cell.config.name for cell, summary in runs if "sampling" not in summary["flops"]]
    if not names:
        return []
    return [f"operations of sampling are not known, and not counted, of {', '.join(names)}"]


def partly_scored(runs: Sequence[Run]) -> list[str]:
    """Runs with an evaluation in which scores failed, in words."""
    return [
        f"{share:.1%} of the scores in the evaluation {moment} {cell.config.name} failed, "
        "its means are over the others"
        for cell, summary in runs
        for moment in ("before", "after")
        if (share := summary.get(moment, {}).get("unscored"))
    ]


def other_than_planned(runs: Sequence[Run]) -> list[str]:
    """Runs that ended before all their cycles, or asked a reward twice, in words."""
    told = []
    for cell, summary in runs:
        if early := summary.get("stopped_early"):
            told.append(f"{cell.config.name} ended before its last cycle: {early}")
        if again := summary.get("reward_queries_again"):
            told.append(
                f"{cell.config.name} may have asked for up to {again:,} scores more than it "
                "counts, which were queued again"
            )
    return told


def legend(tables: Iterable[Sequence[Sequence[str]]]) -> list[str]:
    """What the sign for nothing means, where it stands in a table; a sentence without its stop."""
    if not any(LACKING in row for rows in tables for row in rows):
        return []
    return [
        f"{LACKING} stands where the runs of an arm measure no such score, none is finished, or "
        "the score is one of chains of another length"
    ]


def notes_on(study: Study, results: Finished, tried: Finished | None = None) -> list[str]:
    """What a reader of the tables has to know, in sentences without their full stops.

    Args:
        tried: the tries that are finished, by arm.
    """
    runs = [run for found in (*(tried or {}).values(), *results.values()) for run in found]
    return [
        *beyond_budget(study.budget, results),
        *other_than_planned(runs),
        *without_sampling(runs),
        *partly_scored(runs),
        *unlike_versions(runs),
    ]


def unfinished_rows(cells: Sequence[Cell], failed: Mapping[str, int]) -> list[list[str]]:
    """A head and a row for every run that is under way or ended unfinished; empty without one.

    Args:
        failed: exit statuses of runs that did not end with 0, by name.
    """
    rows = [["not finished", "status", "reason"]]
    for cell in cells:
        status = failed.get(cell.config.name)
        if cell.summary is not None or not (status or has_begun(cell.config, os.environ)):
            continue
        told = cell.told or {}
        known = "under way, or killed" if status is None else f"ended with status {status}"
        known = str(told.get("status", known))
        rows.append([cell.config.name, known, str(told.get("reason") or "")])
    return rows if len(rows) > 1 else []
