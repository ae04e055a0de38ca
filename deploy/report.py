"""`python -m deploy.report RUN_FOLDER`: one self-contained HTML page about a run.

Pictures and curves lie in the page itself and it links to nowhere, so that it can be mailed.
A run that was aborted gets a page too, which says what is missing. Everything that came from a
file is escaped.
"""

import argparse
import base64
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from deploy.curves import Point
from deploy.progress import duration
from deploy.report_data import PICTURES, RunData, read_run, versions

REPORT_FILE = "report.html"
_MAX_PAIRS = 32
_MAX_SIDE = 256
_MAX_CURVES = 36
_PHASE_COLOURS = ("#dbe7f6", "#e6f3dd", "#fbeadb", "#efe0f3", "#f3f0d8", "#e2e2e2")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #1d2330; background: #fff; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #dde; }
.quiet { color: #667; } .missing { background: #fff4e0; border-left: 4px solid #e8a33d;
       padding: .6rem 1rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .9rem .25rem 0; text-align: left;
       vertical-align: top; } td.number, th.number { text-align: right;
       font-variant-numeric: tabular-nums; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figure img { width: 48%; image-rendering: pixelated; border-radius: 3px; }
figcaption { font-size: 13px; overflow-wrap: anywhere; } .wide { max-width: 100%; }
pre { background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: 13px; }
"""


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder; raises ValueError if there is no such folder."""
    page = report_html(read_run(folder))
    target = folder / REPORT_FILE
    partial = target.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(target)


def report_html(run: RunData) -> str:
    """The page."""
    sections = {
        "Before and after": _scores(run),
        "Pictures": _pictures(run),
        "Curves": _curves(run.points),
        "Run": _facts(run),
        "Configuration": _configuration(run),
        "Versions": _rows(_texts(run.summary.get("versions")) or versions()),
    }
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections.items())
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{escape(run.name)} – fleetune</title><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(run.name)}</h1>\n{_status(run)}\n{_missing(run)}\n{body}\n"
        "</body>\n</html>\n"
    )


def _status(run: RunData) -> str:
    status = run.summary.get("status", "not finished")
    return f'<p class="quiet">fleetune run, {escape(str(status))}</p>'


def _missing(run: RunData) -> str:
    if not run.missing:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in run.missing)
    return f'<div class="missing">Missing in this run folder:<ul>{items}</ul></div>'


def _scores(run: RunData) -> str:
    if not run.scores:
        return '<p class="quiet">No evaluation was written.</p>'
    rows = "".join(_score_row(name, *pair) for name, pair in run.scores.items())
    heads = "".join(f'<th class="number">{text}</th>' for text in ("before", "after", "change"))
    return f"<table><tr><th>score</th>{heads}</tr>{rows}</table>"


def _score_row(name: str, before: float | None, after: float | None) -> str:
    change = None if before is None or after is None else after - before
    cells = (_number(before), _number(after), _number(change, "+"))
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f"<tr><td>{escape(name)}</td>{numbers}</tr>"


def _number(value: float | None, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{sign}.4g}" if abs(value) >= 1e4 else f"{value:{sign}.4f}"


def _pictures(run: RunData) -> str:
    shown = {name: run.pictures[name] for name in PICTURES if name in run.pictures}
    if not shown:
        return '<p class="quiet">No pictures were written.</p>'
    count = min(_MAX_PAIRS, *(len(each.prompts) for each in shown.values()))
    prompts = {each.prompts[:count] for each in shown.values()}
    if len(prompts) > 1:
        return '<p class="quiet">The pictures before and after are of different prompts.</p>'
    figures = "".join(
        _figure(prompt, {name: each.images_NHWC[i] for name, each in shown.items()})
        for i, prompt in enumerate(prompts.pop())
    )
    both = "Left before, right after: same prompt, same noise."
    title = both if len(shown) == 2 else f"Only {next(iter(shown))}."
    return f'<p class="quiet">{title}</p><div class="pairs">{figures}</div>'


def _figure(prompt: str, images: Mapping[str, np.ndarray]) -> str:
    tags = " ".join(
        f'<img src="{_image_uri(image_HWC)}" alt="{name}">' for name, image_HWC in images.items()
    )
    return f"<figure>{tags}<figcaption>{escape(prompt)}</figcaption></figure>"


def _image_uri(image_HWC: np.ndarray) -> str:
    image = Image.fromarray(image_HWC)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _curves(points: Sequence[Point]) -> str:
    names = sorted({name for point in points for name in point.values})
    if not names:
        return '<p class="quiet">No curve was written.</p>'
    shown = names[:_MAX_CURVES]
    left_out = len(names) - len(shown)
    note = f'<p class="quiet">{left_out} more in metrics.jsonl.</p>' if left_out else ""
    uri = _uri(_plot(points, shown))
    legend = " ".join(
        f'<span style="background:{_colour(i)}">&nbsp;{escape(phase)}&nbsp;</span>'
        for i, phase in enumerate(_phases(points))
    )
    return (
        f'<p class="quiet">Over steps; background by phase: {legend}</p>'
        f'<img class="wide" src="{uri}" alt="curves">{note}'
    )


def _plot(points: Sequence[Point], names: Sequence[str]) -> bytes:
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    width, height = 4.4 * columns, 2.4 * rows
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(rows, columns, squeeze=False)
    # Margins in inches; matplotlib's own layout engine takes as long as all the drawing.
    figure.subplots_adjust(
        0.5 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.3 / height, wspace=0.2, hspace=0.4
    )
    for i, axes in enumerate(grid.flat):
        if i < len(names):
            _plot_one(axes, points, names[i])
        else:
            axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _phases(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.phase for point in points))


def _colour(phase_index: int) -> str:
    return _PHASE_COLOURS[phase_index % len(_PHASE_COLOURS)]


def _plot_one(axes: Axes, points: Sequence[Point], name: str) -> None:
    phases = _phases(points)
    own = [(point.step, point.values[name]) for point in points if name in point.values]
    for start, end, phase in _spans(points):
        axes.axvspan(start, end, color=_colour(phases.index(phase)))
    axes.plot(*zip(*own, strict=True), marker="o" if len(own) < 30 else "", markersize=3, lw=1.4)
    # parse_math off: a name with dollar signs is a name and no formula.
    axes.set_title(name, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=7)


def _spans(points: Sequence[Point]) -> Iterator[tuple[int, int, str]]:
    """Runs of one phase, as first and last step; a span ends where the next begins."""
    start = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i].phase != points[start].phase:
            end = points[min(i, len(points) - 1)].step
            yield points[start].step, end, points[start].phase
            start = i


def _facts(run: RunData) -> str:
    """What else the summary says, and how long the run took."""
    facts = _texts(run.summary, without=("before", "after", "versions", "status", "config"))
    if run.points:
        facts["last step"] = str(run.points[-1].step)
        facts["training time"] = duration(run.points[-1].wall_s) or "–"
    return _rows(facts) if facts else '<p class="quiet">Nothing is known.</p>'


def _configuration(run: RunData) -> str:
    if run.config is None:
        return '<p class="quiet">The config was not written.</p>'
    text = json.dumps(run.config, indent=2, ensure_ascii=False, default=str)
    return f"<details><summary>Resolved config</summary><pre>{escape(text)}</pre></details>"


def _texts(value: object, without: Sequence[str] = ()) -> dict[str, str]:
    """A mapping as texts to show; anything else is nothing."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(key): item if isinstance(item, str) else json.dumps(item, default=str)
        for key, item in value.items()
        if key not in without
    }


def _rows(texts: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><td class="quiet">{escape(name)}</td><td>{escape(text)}</td></tr>'
        for name, text in texts.items()
    )
    return f"<table>{rows}</table>"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of a run, such as runs/my-run")
    options = parser.parse_args(arguments)
    try:
        path = write_report(options.folder)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
