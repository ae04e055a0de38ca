"""What a study's finished runs come to: tables, as Markdown and CSV, and areas of Pareto fronts."""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import moocore
import numpy as np

from deploy.compare import changes, half_interval
from deploy.settings.run_config import RunConfig
from deploy.study.file import Cell, Front, Study, cells_of

_COSTS = ("reward queries", "reward gradients", "sampling TFLOPs", "learner TFLOPs", "wall s")
_OF_A_CHAIN = ("step", "kl_nats", "clean_distance")
"""Ends of the names of scores that say something else of a chain of another length."""
LACKING = "–"
"""Of a score that a run does not measure, such as that of its eighth step where it takes two."""
Run = tuple[Cell, dict[str, Any]]
"""A finished run and its summary."""
Finished = Mapping[str, Sequence[Run]]
"""By arm, the runs that are finished and their summaries."""


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


def finished(study: Study, cells: Sequence[Cell]) -> dict[str, list[Run]]:
    """The finished runs by arm; an arm without one is there, empty."""
    found: dict[str, list[Run]] = {arm: [] for arm in study.arms}
    for cell in cells:
        if (summary := cell.summary) is not None:
            found[cell.arm].append((cell, summary))
    return found


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
        gradients = (
            f"{statistics.mean(cell.config.method.reward_gradients for cell, _ in found):,.0f}"
        )
        sampled = [summary["flops"].get("sampling", 0.0) / 1e12 for summary in summaries]
        learned = [tflops(each) - own for each, own in zip(summaries, sampled, strict=True)]
        computed = [f"{statistics.mean(values):,.1f}" for values in (sampled, learned)]
        changed = [_change(summaries, score) for score in scores]
        rows.append([arm, runs, *changed, queries, gradients, *computed, wall_s])
    return rows


def difference_rows(study: Study, results: Finished) -> list[list[str]]:
    """A head and a row an arm: how it ends beside the arm `against`, seed by seed, with 95 %
    intervals of the mean difference; empty where the study names none.

    What is of a chain, such as the score of its second step, is not compared with that of a chain
    of another length.
    """
    if study.against is None:
        return []
    scores = scores_shown(study, results)
    rows = [[f"less {study.against}", "seeds", *scores]]
    of_other = _ends(results.get(study.against, ()))
    for arm, found in results.items():
        own = _ends(found)
        seeds = [seed for seed in own if seed in of_other]
        if arm == study.against or not seeds:
            continue
        cells = []
        for score in scores:
            pairs = [(own[seed].get(score), of_other[seed].get(score)) for seed in seeds]
            gaps = [a - b for a, b in pairs if a is not None and b is not None]
            alike = _are_alike([score], found, results.get(study.against, ()))
            complete = alike and len(gaps) == len(seeds)
            told = f"{statistics.mean(gaps):+.3f}{_interval(gaps, 3)}" if complete else LACKING
            cells.append(told)
        rows.append([arm, str(len(seeds)), *cells])
    return rows


def _are_alike(scores: Sequence[str], own: Sequence[Run], others: Sequence[Run]) -> bool:
    """Whether scores mean the same thing of runs of two arms or families."""
    if not any(score.endswith(_OF_A_CHAIN) for score in scores):
        return True
    return len({cell.config.model.num_steps for cell, _ in (*own, *others)}) <= 1


def front_rows(study: Study, results: Finished) -> list[list[str]]:
    """A head and a row a front and family: its arms, as more of them make a larger area; its
    hypervolume, mean and 95 % interval over the seeds that all its arms have finished; and where
    the study names one, the same of the difference, seed by seed, to the family of `against`.
    """
    if not study.fronts:
        return []
    arms_of = families(study)
    other = next((name for name, arms in arms_of.items() if study.against in arms), None)
    less_other = [f"less {other}"] if other else []
    rows = [["front", "family", "arms", "seeds", "hypervolume", *less_other]]
    runs = {n: [run for arm in a for run in results.get(arm, ())] for n, a in arms_of.items()}
    for front in study.fronts:
        volumes = {name: _volumes(front, arms, results) for name, arms in arms_of.items()}
        for name, by_seed in volumes.items():
            told = [_mean_told(list(by_seed.values()), "")]
            if other:
                alike = _are_alike(front.scores, runs[name], runs[other])
                shared = [seed for seed in by_seed if alike and seed in volumes[other]]
                less = _mean_told([by_seed[s] - volumes[other][s] for s in shared], "+")
                told.append("itself" if name == other else less)
            arms = str(len(arms_of[name]))
            rows.append([" × ".join(front.scores), name, arms, str(len(by_seed)), *told])
    return rows


def _volumes(front: Front, arms: Sequence[str], results: Finished) -> dict[int, float]:
    """Hypervolume of a family by the seeds that all its arms have finished."""
    return {
        seed: hypervolume(points, front.reference)
        for seed, points in points_of(front, arms, results).items()
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


def points_of(front: Front, arms: Sequence[str], results: Finished) -> dict[int, list[list[float]]]:
    """Where the runs of some arms end on a front, by seed; without those that lack a score."""
    by_seed: dict[int, list[list[float]]] = {}
    for cell, summary in (run for arm in arms for run in results.get(arm, ())):
        values = [summary["after"].get(score) for score in front.scores]
        if None not in values:
            by_seed.setdefault(cell.config.seed, []).append(values)
    return by_seed


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Area that the points dominate above a reference; both scores are better when higher."""
    area = moocore.hypervolume(np.array(points, dtype=float), ref=list(reference), maximise=True)
    return float(area)


def pareto(points: Sequence[Sequence[float]]) -> list[list[float]]:
    """The points that none of the others dominates, by the first score."""
    array = np.array(points, dtype=float)
    kept = array[moocore.is_nondominated(array, maximise=True)]
    return kept[np.argsort(kept[:, 0])].tolist()


def csv_of(study: Study, results: Finished) -> str:
    """A line for every score of every finished run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    costs = ["reward_queries", "reward_gradients", "tflops", "wall_s"]
    writer.writerow(["arm", "seed", "score", "before", "after", *costs])
    scores = scores_shown(study, results)
    for cell, summary in (run for found in results.values() for run in found):
        for score in scores:
            values = [summary[side].get(score) for side in ("before", "after")]
            asked = [summary["reward_queries"], cell.config.method.reward_gradients]
            costs = [*asked, tflops(summary), summary["wall_s"]]
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
