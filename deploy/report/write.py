"""`python -m deploy.report RUN_FOLDER`: one self-contained HTML page about a run.

Pictures and curves lie in the page itself and it links to nowhere, so that it can be mailed.
A run that was aborted gets a page too, which says what is missing. Everything that came from a
file is escaped.
"""

import argparse
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from deploy.report.data import RunData, read_run, versions
from deploy.report.markup import badge, facts, number, page, quiet, table, texts_of
from deploy.report.monitor import monitor
from deploy.report.pictures import picture_grid
from deploy.report.plots import curves
from deploy.report.run import configuration, fleets, ledger, run_facts
from deploy.run.files import EVALUATION_PHASE, REPORT_FILE
from deploy.run.whole_files import write_whole

_KINDS = {"finished": "good", "failed": "bad"}


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder; raises ValueError if there is no such folder."""
    text = report_html(read_run(folder))
    write_whole(folder / REPORT_FILE, text)
    return folder / REPORT_FILE


def report_html(run: RunData) -> str:
    """The page."""
    sections = {
        "Before and after": _scores(run),
        "Pictures": picture_grid(run.pictures, run.pictures_left_out),
        "Over-optimisation": monitor(run),
        "Curves": curves(run.points, without=(EVALUATION_PHASE,)),
        "Ledger": ledger(run),
        "Fleets": fleets(run),
        "Run": run_facts(run),
        "Configuration": configuration(run),
        "Versions": facts(texts_of(run.summary.get("versions")) or versions()),
    }
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections.items())
    head = f"<h1>{escape(run.name)}</h1>\n{_status(run)}\n{_missing(run)}"
    return page(run.name, f"{head}\n{body}")


def _status(run: RunData) -> str:
    status = str(run.summary.get("status", "not finished"))
    said = badge(status, _KINDS.get(status, ""))
    if version := run.summary.get("exported_version"):
        said += badge(f"result: {version}")
    if early := run.summary.get("stopped_early"):
        said += badge(f"stopped early: {early}")
    reason = run.summary.get("reason")
    return f"<p>{said}{escape(str(reason)) if reason else ''}</p>"


def _missing(run: RunData) -> str:
    if not run.missing:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in run.missing)
    return f'<div class="missing">Missing in this run folder:<ul>{items}</ul></div>'


def _scores(run: RunData) -> str:
    if not run.scores:
        return quiet("No evaluation was written.")
    rows = [_score_row(name, *pair) for name, pair in run.scores.items()]
    return table(("score", "before", "after", "change"), rows, numbers=(1, 2, 3))


def _score_row(name: str, before: float | None, after: float | None) -> Sequence[str]:
    change = None if before is None or after is None else after - before
    return name, number(before), number(after), number(change, "+")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a run, such as runs/my-run")
    options = parser.parse_args(arguments)
    try:
        path = write_report(options.folder)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{path}\n")
    return 0
