"""How runs of a study come along: curves with intervals, and what a run spends to reach a score."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.compare import half_interval
from deploy.run.curves import Point, read_points
from deploy.run.files import FRESH_PHASE, METRICS_FILE
from deploy.settings.run_config import RunConfig
from deploy.study.file import Reach, Study
from deploy.study.plots import Band
from deploy.study.tables import LACKING, Finished, Run

_CYCLE_PHASES = ("policy", FRESH_PHASE)


def band(runs: Sequence[tuple[RunConfig, Sequence[Point]]], phase: str, name: str) -> Band:
    """A curve's mean over the runs, where all of them have a point."""
    # Fresh samples of a cycle are of the version that it has made.
    later = int(phase == FRESH_PHASE)
    curves = []
    for config, points in runs:
        found = {
            queries_before(config, point.step + later): point.values[name]
            for point in points
            if point.phase == phase and name in point.values
        }
        curves.append(found)
    places = sorted(set[int]().union(*curves).intersection(*curves)) if curves else []
    band = []
    for place in places:
        values = [curve[place] for curve in curves]
        half = half_interval(values)
        band.append((place, statistics.mean(values), 0.0 if math.isnan(half) else half))
    return band


def queries_before(config: RunConfig, cycle: int) -> int:
    """What the samples cost that a policy version, after so many cycles, has learned from; after
    the last cycle, what the run has cost."""
    ends = (0, *config.method.round_ends)
    groups = ends[cycle] if cycle < config.method.cycles else ends[-1]
    records = groups * config.actors.group_size
    return min(records, config.max_records or records) * config.queries_per_record


@dataclass(frozen=True)
class Reached:
    """What a run had spent when its fresh samples had the score.

    Attributes:
        cycles: that their policy had learned for.
        queries: reward queries until then, as `queries_before` counts them.
        seconds: from the first cycle's beginning on.
    """

    cycles: int
    queries: int
    seconds: float


def reached(reach: Reach, config: RunConfig, points: Sequence[Point]) -> Reached | None:
    """When the mean of so many rounds of fresh samples has the score; None: never."""
    begun_s = 0.0
    for point in points:
        if point.phase in _CYCLE_PHASES:
            break
        begun_s = point.wall_s
    rounds = [p for p in points if p.phase == FRESH_PHASE and reach.score in p.values]
    for last in range(reach.rounds, len(rounds) + 1):
        window = rounds[last - reach.rounds : last]
        if statistics.mean(point.values[reach.score] for point in window) >= reach.at:
            cycles = window[-1].step + 1
            return Reached(cycles, queries_before(config, cycles), window[-1].wall_s - begun_s)
    return None


def reach_rows(study: Study, results: Finished) -> list[list[str]]:
    """A head and a row an arm: means over the seeds that reach the score; empty without `reach`.
    Beside the arm `against`, seed by seed: how many times its seconds, median and range.
    """
    reach = study.reach
    if reach is None:
        return []
    found = {arm: _by_seed(reach, runs) for arm, runs in results.items()}
    head = [f"{reach.score} of {reach.at:g}", "reached", "cycles", "reward queries", "seconds"]
    if study.against is not None:
        head.append(f"seconds of {study.against} / own")
    rows = [head]
    for arm, by_seed in found.items():
        reached_at = [each for each in by_seed.values() if each is not None]
        row = [arm, f"{len(reached_at)}/{len(by_seed)}"]
        if reached_at:
            row.append(f"{statistics.mean(each.cycles for each in reached_at):.1f}")
            row.append(f"{statistics.mean(each.queries for each in reached_at):,.0f}")
            row.append(f"{statistics.mean(each.seconds for each in reached_at):,.0f}")
        else:
            row += ["never"] * 3
        if study.against is not None:
            row.append(_ratios(found.get(study.against, {}), by_seed))
        rows.append(row)
    return rows


def _by_seed(reach: Reach, runs: Sequence[Run]) -> dict[int, Reached | None]:
    return {
        cell.config.seed: reached(reach, cell.config, read_points(cell.folder / METRICS_FILE))
        for cell, _ in runs
    }


def _ratios(others: Mapping[int, Reached | None], own: Mapping[int, Reached | None]) -> str:
    pairs = [(others.get(seed), each) for seed, each in own.items()]
    ratios = [other.seconds / each.seconds for other, each in pairs if other and each]
    if not ratios:
        return LACKING
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
