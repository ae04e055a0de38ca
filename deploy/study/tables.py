"""What a study's finished runs come to: tables, as Markdown and CSV, and areas of Pareto fronts."""

import csv
import io
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np

from deploy.compare import changes, half_interval
from deploy.run.plan import has_begun
from deploy.settings.run_config import RunConfig
from deploy.study.file import (
    Budget,
    Cell,
    Front,
    Study,
    cells_of,
)

_COSTS = ("reward queries", "sampling TFLOPs", "learner TFLOPs", "wall s")
TUNING_FILE = "tuning.json"
LACKING = "–"
"""Of a score that a run does not measure, such as that of its eighth step where it takes two."""
Finished = Mapping[str, Sequence[tuple[Cell, dict[str, Any]]]]
"""By arm, the runs that are finished and their summaries."""


@dataclass(frozen=True)
class Chosen:
    """What tuning an arm came to.

    Attributes:
        values: overrides of the best try; None: no try has a score.
        scores: of every try, in the file's order; None: it is not finished, or has none.
    """

    values: tuple[str, ...] | None
    scores: tuple[float | None, ...]


def refuse_unknown_scores(study: Study, name: str) -> None:
    """Raises ValueError if the file names a score that none of its runs measures."""
    configs = [cell.config for cell in cells_of(study, name)]
    measured = {score for config in configs for score in scores_of(config)}
    fresh = {f"reward_{label}" for config in configs for label in config.step_labels}
    named = [*(study.scores or ()), *(score for front in study.fronts for score in front.scores)]
    if study.tuning is not None:
        named.append(study.tuning.score)
    reach = [] if study.reach is None else [study.reach.score]
    for scores, known, of in ((named, measured, ""), (reach, fresh, " of fresh samples")):
        if unknown := [score for score in dict.fromkeys(scores) if score not in known]:
            raise ValueError(
                f"no run measures {', '.join(unknown)}{of}; there are {', '.join(sorted(known))}"
            )


def scores_of(config: RunConfig) -> tuple[str, ...]:
    """Names of all that an evaluation of a run tells."""
    distances = [f"diversity_{name}" for name in config.evaluation.diversity.distances]
    drift = ["clean_distance"] if config.model.is_few_step else []
    signs = ("colour_entropy", "sharpness", "diversity", "kl_nats")
    return (*config.measured_scores, *signs, *distances, *drift)


def finished(study: Study, cells: Sequence[Cell]) -> dict[str, list[tuple[Cell, dict[str, Any]]]]:
    """The finished runs by arm; an arm without one is there, empty."""
    found: dict[str, list[tuple[Cell, dict[str, Any]]]] = {arm: [] for arm in study.arms}
    for cell in cells:
        if (summary := cell.summary) is not None:
            found[cell.arm].append((cell, summary))
    return found


def choose(study: Study, tries: Mapping[str, Sequence[Cell]], folder: Path) -> dict[str, Chosen]:
    """The best try of every arm that has some, the first of equal ones.

    A choice that runs have begun with stays, whatever becomes of a try that had failed then.

    Args:
        folder: of the study.
    """
    if study.tuning is None:
        return {}
    recorded, found = _recorded_choices(folder), {}
    for arm, cells in tries.items():
        scores = tuple(
            (cell.summary or {}).get("after", {}).get(study.tuning.score) for cell in cells
        )
        known = [score for score in scores if score is not None]
        all_tries = study.arms[arm].tries
        values = all_tries[scores.index(max(known))] if known else None
        earlier = recorded.get(arm)
        if earlier in all_tries and _has_begun(study, folder.name, arm, earlier):
            values = earlier
        found[arm] = Chosen(values, scores)
    return found


def _recorded_choices(folder: Path) -> dict[str, tuple[str, ...]]:
    try:
        told = json.loads((folder / TUNING_FILE).read_text(encoding="utf-8"))
        return {arm: tuple(each["values"]) for arm, each in told.items() if each["values"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _has_begun(study: Study, name: str, arm: str, values: tuple[str, ...]) -> bool:
    """Whether a run of the study's seeds was started with a choice."""
    cells = cells_of(study, name, {arm: values})
    return any(has_begun(cell.config, os.environ) and not cell.changed_settings() for cell in cells)


def scores_shown(study: Study, results: Finished) -> list[str]:
    """The study's scores, or all that every finished run has."""
    if study.scores is not None:
        return list(study.scores)
    summaries = [summary for found in results.values() for _, summary in found]
    shown = summaries[0]["after"] if summaries else {}
    return [score for score in shown if _have(summaries, score)]


def rows_of(study: Study, results: Finished) -> list[list[str]]:
    """A head and a row an arm: its finished runs' means and 95 % intervals of the change."""
    scores = scores_shown(study, results)
    rows = [["arm", "runs", *scores, *_COSTS]]
    for arm, found in results.items():
        runs = f"{len(found)}/{len(study.seeds)}"
        summaries = [summary for _, summary in found]
        if not summaries:
            rows.append([arm, runs, *([LACKING] * (len(scores) + len(_COSTS)))])
            continue
        queries, wall_s = (
            f"{statistics.mean(summary[name] for summary in summaries):,.0f}"
            for name in ("reward_queries", "wall_s")
        )
        sampled = [summary["flops"].get("sampling", 0.0) / 1e12 for summary in summaries]
        learned = [tflops(each) - own for each, own in zip(summaries, sampled, strict=True)]
        computed = [f"{statistics.mean(values):,.1f}" for values in (sampled, learned)]
        changed = [_change(summaries, score) for score in scores]
        rows.append([arm, runs, *changed, queries, *computed, wall_s])
    return rows


def difference_rows(study: Study, results: Finished) -> list[list[str]]:
    """A head and a row an arm: how it ends beside the arm `against`, seed by seed, with 95 %
    intervals of the mean difference; empty where the study names none.

    The second of four steps and the last of two are not the same thing, and are not compared.
    """
    if study.against is None:
        return []
    scores = scores_shown(study, results)
    rows = [[f"less {study.against}", "seeds", *scores]]
    of_other = _ends(results.get(study.against, ()))
    steps = {arm: {cell.config.model.num_steps for cell, _ in f} for arm, f in results.items()}
    for arm, found in results.items():
        own = _ends(found)
        seeds = [seed for seed in own if seed in of_other]
        if arm == study.against or not seeds:
            continue
        cells = []
        for score in scores:
            pairs = [(own[seed].get(score), of_other[seed].get(score)) for seed in seeds]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            complete = len(gaps) == len(seeds) and not (
                score.endswith("step") and steps[arm] != steps[study.against]
            )
            told = f"{statistics.mean(gaps):+.3f}{_interval(gaps, 3)}" if complete else LACKING
            cells.append(told)
        rows.append([arm, str(len(seeds)), *cells])
    return rows


def tuning_rows(study: Study, chosen: Mapping[str, Chosen]) -> list[list[str]]:
    """A head and a row a try, the chosen ones marked, and where a better one may lie beyond the
    values that were tried; empty without tuning."""
    if study.tuning is None:
        return []
    rows = [["arm", "try", study.tuning.score, "chosen"]]
    for arm, told in chosen.items():
        tries = study.arms[arm].tries
        for values, score in zip(tries, told.scores, strict=True):
            shown = "none" if score is None else f"{score:.4f}"
            mark = ", ".join(["yes", *_at_an_end(tries, values)]) if values == told.values else ""
            rows.append([arm, " ".join(values), shown, mark])
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


def front_rows(study: Study, results: Finished) -> list[list[str]]:
    """A head and a row a front and family: hypervolume, mean and 95 % interval over the seeds that
    all its arms have finished, and where the study names one, the same of its difference, seed by
    seed, to that of the family of the arm `against`."""
    if not study.fronts:
        return []
    arms_of = families(study)
    other = next((name for name, arms in arms_of.items() if study.against in arms), None)
    rows = [["front", "family", "seeds", "hypervolume", *([f"less {other}"] if other else [])]]
    for front in study.fronts:
        volumes = {name: _volumes(front, arms, results) for name, arms in arms_of.items()}
        for name, by_seed in volumes.items():
            told = [_mean_told(list(by_seed.values()), "")]
            if other:
                shared = [seed for seed in by_seed if seed in volumes[other]]
                less = _mean_told([by_seed[s] - volumes[other][s] for s in shared], "+")
                told.append("itself" if name == other else less)
            rows.append([" × ".join(front.scores), name, str(len(by_seed)), *told])
    return rows


def _volumes(front: Front, arms: Sequence[str], results: Finished) -> dict[int, float]:
    """Hypervolume of a family by the seeds that all its arms have finished."""
    by_seed: dict[int, list[list[float]]] = {}
    for cell, summary in (run for arm in arms for run in results.get(arm, ())):
        if (point := point_of(front, summary)) is not None:
            by_seed.setdefault(cell.config.seed, []).append(point)
    return {
        seed: hypervolume(points, front.reference)
        for seed, points in by_seed.items()
        if len(points) == len(arms)
    }


def _mean_told(values: Sequence[float], sign: str) -> str:
    return f"{statistics.mean(values):{sign}.4f}{_interval(values, 4)}" if values else LACKING


def families(study: Study) -> dict[str, list[str]]:
    """Arms by family, in the file's order."""
    found: dict[str, list[str]] = {}
    for name, arm in study.arms.items():
        found.setdefault(arm.family or name, []).append(name)
    return found


def point_of(front: Front, summary: Mapping[str, Any]) -> list[float] | None:
    """Where a run ends on a front; None: it lacks a score."""
    values = [summary["after"].get(score) for score in front.scores]
    return None if None in values else values


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Area that the points dominate above a reference; both scores are better when higher."""
    area = moocore.hypervolume(np.array(points, dtype=float), ref=list(reference), maximise=True)
    return float(area)


def pareto(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """The points that none of the others dominates, by the first score."""
    array = np.array(points, dtype=float)
    kept = array[moocore.is_nondominated(array, maximise=True)]
    return kept[np.argsort(kept[:, 0])].tolist()


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


def unlike_versions(results: Finished) -> list[str]:
    """What runs of the study differ in, of their code and libraries, in words."""
    summaries = [summary for found in results.values() for _, summary in found]
    known = [summary.get("versions", {}) for summary in summaries]
    told = []
    for name in dict.fromkeys(name for each in known for name in each):
        counts = Counter(each.get(name, "unknown") for each in known)
        if len(counts) > 1:
            shares = ", ".join(f"{value} ({count})" for value, count in counts.items())
            told.append(f"runs were made with different versions of {name}: {shares}")
    return told


def without_sampling(results: Finished) -> list[str]:
    """Runs whose operations lack those of sampling, in words."""
    names = [
        cell.config.name
        for found in results.values()
        for cell, summary in found
        if "sampling" not in summary["flops"]
    ]
    if not names:
        return []
    return [f"operations of sampling are not known, and not counted, of {', '.join(names)}"]


def partly_scored(results: Finished) -> list[str]:
    """Runs with an evaluation in which scores failed, in words."""
    return [
        f"{share:.1%} of the scores in the evaluation {moment} {cell.config.name} failed, "
        "its means are over the others"
        for found in results.values()
        for cell, summary in found
        for moment in ("before", "after")
        if (share := summary.get(moment, {}).get("unscored"))
    ]


def legend(tables: Iterable[list[list[str]]]) -> list[str]:
    """What the sign for nothing means, where it stands in a table; a sentence without its stop."""
    if not any(LACKING in row for rows in tables for row in rows):
        return []
    return [
        f"{LACKING} stands where the runs of an arm measure no such score, none is finished, or a "
        "step's score is of chains of another length"
    ]


def notes_on(study: Study, results: Finished) -> list[str]:
    """What a reader of the tables has to know, in sentences without their full stops."""
    return [
        *beyond_budget(study.budget, results),
        *without_sampling(results),
        *partly_scored(results),
        *unlike_versions(results),
    ]


def unfinished_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """A head and a row for every run that has begun and is not finished; empty without one."""
    rows = [["not finished", "status", "reason"]]
    for cell in cells:
        if cell.summary is not None or not has_begun(cell.config, os.environ):
            continue
        told = cell.told or {}
        status = str(told.get("status", "under way, or killed"))
        rows.append([cell.config.name, status, str(told.get("reason") or "")])
    return rows if len(rows) > 1 else []


def csv_of(study: Study, results: Finished) -> str:
    """A line for every score of every finished run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    costs = ["reward_queries", "tflops", "wall_s"]
    writer.writerow(["arm", "seed", "score", "before", "after", *costs])
    scores = scores_shown(study, results)
    for cell, summary in (run for found in results.values() for run in found):
        for score in scores:
            values = [summary[side].get(score) for side in ("before", "after")]
            costs = [summary["reward_queries"], tflops(summary), summary["wall_s"]]
            writer.writerow([cell.arm, cell.config.seed, score, *values, *costs])
    return out.getvalue()


def tflops(summary: Mapping[str, Any]) -> float:
    """Of sampling and learning, in 10¹²."""
    return sum(summary["flops"].values()) / 1e12


def _have(summaries: Sequence[dict[str, Any]], score: str) -> bool:
    return all(score in summary[side] for summary in summaries for side in ("before", "after"))


def _ends(found: Sequence[tuple[Cell, dict[str, Any]]]) -> dict[int, dict[str, float]]:
    return {cell.config.seed: summary["after"] for cell, summary in found}


def _change(summaries: Sequence[dict[str, Any]], score: str) -> str:
    if not _have(summaries, score):
        return LACKING
    before, after, gained, half = changes(summaries, score)
    interval = "" if math.isnan(half) else f" ± {half:.3f}"
    return f"{before:.3f} → {after:.3f} ({gained:+.3f}{interval})"


def _interval(values: Sequence[float], digits: int) -> str:
    half = half_interval(values)
    return "" if math.isnan(half) else f" ± {half:.{digits}f}"
