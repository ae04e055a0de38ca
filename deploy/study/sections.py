"""A study's tables, in the order that its page and its Markdown show them in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.study.curves import reach_rows
from deploy.study.file import Study
from deploy.study.notes import legend, notes_on
from deploy.study.tables import Finished, difference_rows, front_rows, rows_of
from deploy.study.tuning import Chosen, tuning_rows

FRONTS = "Pareto fronts"
_UNDIAGNOSED = "what a policy gradient has to go by is not measured: the log says why"


@dataclass(frozen=True)
class Section:
    """A table, perhaps without rows.

    Attributes:
        rows: the first is its head.
        texts: columns before those of numbers.
        note: what its numbers are.
    """

    title: str
    rows: Sequence[Sequence[str]]
    texts: int = 1
    note: str = ""


@dataclass(frozen=True)
class Told:
    """All that is known of a study so far.

    Attributes:
        notes: what has to be known beside the tables, in sentences without their full stops.
    """

    sections: Sequence[Section]
    notes: Sequence[str]


def told_of(
    study: Study,
    results: Finished,
    tried: Finished,
    chosen: Mapping[str, Chosen],
    diagnosis: Sequence[Sequence[str]],
    unfinished: Sequence[Sequence[str]],
) -> Told:
    """Its tables.

    Args:
        tried: the tries that are finished, by arm.
        diagnosis: rows of what a policy gradient has to go by, the first of them the head.
        unfinished: likewise of the runs that have begun and ended without a result.
    """
    means = (
        "Mean over the seeds, before → after, and the change with its 95 % interval (Student's t)"
    )
    reach = ""
    if study.reach is not None:
        reach = (
            f"When the mean of {study.reach.rounds} rounds of fresh samples has the score: means "
            "over the seeds that reach it, seconds from the first cycle's beginning on"
        )
    sections = [
        Section("Scores", rows_of(study, results), note=means),
        Section("Not finished", unfinished, texts=3),
        Section("Differences", difference_rows(study, results)),
        Section("What a score costs", reach_rows(study, results), note=reach),
        Section(FRONTS, front_rows(study, results), texts=2),
        Section("Tuning", tuning_rows(study, chosen), texts=2),
        Section("Diagnosis", diagnosis),
    ]
    shown = [section for section in sections if section.rows]
    undiagnosed = [] if study.diagnosis is None or diagnosis else [_UNDIAGNOSED]
    notes = [
        *undiagnosed,
        *legend([section.rows for section in shown]),
        *notes_on(study, results, tried),
    ]
    return Told(shown, notes)
