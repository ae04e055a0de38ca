"""The page of a study: tables, curves with intervals, Pareto fronts, pictures, in one HTML file."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from deploy.report.data import Pictures, read_pictures, versions
from deploy.report.markup import badge, facts, page, quiet, table
from deploy.report.pictures import picture_grid
from deploy.run.curves import read_points
from deploy.run.files import AFTER, BEFORE, EVALUATION_PHASE, FRESH_PHASE, METRICS_FILE
from deploy.study.curves import band, reach_rows
from deploy.study.file import Cell, Study
from deploy.study.plots import bands, front
from deploy.study.tables import (
    Chosen,
    Finished,
    difference_rows,
    families,
    front_rows,
    legend,
    notes_on,
    pareto,
    point_of,
    rows_of,
    scores_shown,
    tuning_rows,
)

_QUERIES = "reward queries"


def study_html(
    name: str,
    study: Study,
    results: Finished,
    chosen: Mapping[str, Chosen],
    diagnosis: Sequence[Sequence[str]] = (),
    unfinished: Sequence[Sequence[str]] = (),
) -> str:
    """The page; what is not finished yet is said.

    Args:
        diagnosis: rows of what a policy gradient has to go by, the first of them the head.
        unfinished: likewise of the runs that have begun and ended without a result.
    """
    done, total = sum(map(len, results.values())), len(results) * len(study.seeds)
    status = badge(f"{done} of {total} runs finished", "good" if done == total else "")
    sections = {
        "Scores before and after": _scores(study, results),
        "Not finished": _table(unfinished, texts=3),
        "Differences": _table(difference_rows(study, results)),
        "What a score costs": _reach(study, results),
        "Tuning": _table(tuning_rows(study, chosen), texts=2),
        "What a policy gradient has to go by": _table(diagnosis),
        "Pareto fronts": _fronts(study, results),
        "Curves": "".join(_curves(study, results)),
        "Pictures": _pictures(results),
        "Versions": facts(versions()),
    }
    body = "\n".join(f"<h2>{title}</h2>\n{text}" for title, text in sections.items() if text)
    return page(name, f"<h1>{escape(name)}</h1>\n<p>{status}</p>\n{body}")


def _table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Empty without rows.

    Args:
        texts: columns before those of numbers.
    """
    if not rows:
        return ""
    return table(rows[0], rows[1:], numbers=range(texts, len(rows[0])))


def _scores(study: Study, results: Finished) -> str:
    text = (
        "Mean over the seeds, before → after, and the change with its 95 % interval (Student's t)."
    )
    rows = rows_of(study, results)
    notes = [text, *legend([rows]), *notes_on(study, results)]
    return _table(rows) + "".join(map(quiet, notes))


def _reach(study: Study, results: Finished) -> str:
    rows = reach_rows(study, results)
    if study.reach is None or len(rows) < 2:
        return ""
    text = (
        f"When the mean of {study.reach.rounds} rounds of fresh samples has the score: means over "
        "the seeds that reach it, seconds from the first cycle's beginning on."
    )
    return _table(rows) + quiet(text)


def _fronts(study: Study, results: Finished) -> str:
    parts = [_table(front_rows(study, results), texts=2)]
    for each in study.fronts:
        points = {
            family: [
                point
                for arm in arms
                for _, summary in results.get(arm, ())
                if (point := point_of(each, summary)) is not None
            ]
            for family, arms in families(study).items()
        }
        edges = {family: pareto(found) for family, found in points.items() if found}
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
