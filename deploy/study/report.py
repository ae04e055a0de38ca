"""The page of a study: tables, curves with intervals, Pareto fronts, pictures, in one HTML file."""

import statistics
from collections.abc import Iterator
from html import escape

from deploy.report.data import Pictures, read_pictures, versions
from deploy.report.markup import badge, facts, page, quiet, table
from deploy.report.pictures import picture_grid
from deploy.run.curves import read_points
from deploy.run.files import AFTER, BEFORE, EVALUATION_PHASE, FRESH_PHASE, METRICS_FILE
from deploy.study.curves import band
from deploy.study.file import Cell, Study
from deploy.study.plots import bands, front
from deploy.study.sections import FRONTS, Section, Told
from deploy.study.tables import Finished, families, pareto, points_of, scores_shown

_QUERIES = "reward queries"


def study_html(name: str, study: Study, results: Finished, told: Told) -> str:
    """The page; what is not finished yet is said."""
    done, total = sum(map(len, results.values())), len(results) * len(study.seeds)
    status = badge(f"{done} of {total} runs finished", "good" if done == total else "")
    sections = {section.title: _table(section) for section in told.sections}
    if FRONTS in sections:
        sections[FRONTS] += _fronts(study, results)
    notes = "".join(map(quiet, told.notes))
    sections |= {
        "Notes": notes,
        "Curves": "".join(_curves(study, results)),
        "Pictures": _pictures(results),
        "Versions": facts(versions()),
    }
    body = "\n".join(f"<h2>{title}</h2>\n{text}" for title, text in sections.items() if text)
    return page(name, f"<h1>{escape(name)}</h1>\n<p>{status}</p>\n{body}")


def _table(section: Section) -> str:
    rows = section.rows
    shown = table(rows[0], rows[1:], numbers=range(section.texts, len(rows[0])))
    return shown + (quiet(section.note) if section.note else "")


def _fronts(study: Study, results: Finished) -> str:
    parts = []
    for each in study.fronts:
        points: dict[str, list[list[float]]] = {}
        edges: dict[str, list[list[list[float]]]] = {}
        for family, arms in families(study).items():
            by_seed = points_of(each, arms, results)
            points[family] = [point for found in by_seed.values() for point in found]
            edges[family] = [pareto(found) for found in by_seed.values()]
        befores = [
            [summary["before"][score] for score in each.scores]
            for found in results.values()
            for _, summary in found
            if all(score in summary["before"] for score in each.scores)
        ]
        before = [statistics.mean(side) for side in zip(*befores, strict=True)] if befores else None
        parts.append(front(points, edges, each.scores, before))
    return "".join(parts)


def _curves(study: Study, results: Finished) -> Iterator[str]:
    points = {
        arm: [(cell.config, read_points(cell.folder / METRICS_FILE)) for cell, _ in found]
        for arm, found in results.items()
    }
    for score in scores_shown(study, results):
        series = {arm: band(runs, EVALUATION_PHASE, score) for arm, runs in points.items()}
        yield bands(series, f"{score}, held out", _QUERIES)
    rewards = dict.fromkeys(
        name
        for runs in points.values()
        for _, rows in runs
        for point in rows
        if point.phase == FRESH_PHASE
        for name in point.values
        if name.startswith("reward")
    )
    for name in rewards:
        series = {arm: band(runs, FRESH_PHASE, name) for arm, runs in points.items()}
        yield bands(series, f"{name}, fresh samples", _QUERIES)


def _pictures(results: Finished) -> str:
    """A column an arm, of the study's first seed that is finished in it, and one of what arms of as
    many steps began with."""
    shown: dict[str, Pictures] = {}
    begun: set[int] = set()
    for arm, found in results.items():
        if not found:
            continue
        cell: Cell = found[0][0]
        steps = cell.config.model.num_steps
        pairs = [] if steps in begun else [(BEFORE, f"before, {steps} steps")]
        begun.add(steps)
        for moment, title in [*pairs, (AFTER, arm)]:
            if (pictures := read_pictures(cell.folder, moment, [])) is not None:
                shown[title] = pictures
    return picture_grid(shown, column="one arm, at its end") if shown else ""
