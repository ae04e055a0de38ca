"""The curves of a report as pictures: one a curve, by phase, over that phase's own steps."""

import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from deploy.report.markup import data_uri, image, quiet
from deploy.run.curves import Point

_MAX_CURVES = 48
_MARKED = 40
"""Points up to which each of them is drawn."""
_PHASES = {
    "pretrain": ("#7a5ea8", "fitting the surrogate, over its steps"),
    "policy": ("#2f5fb3", "policy steps, over cycles"),
    "fresh": ("#2b8a5b", "true rewards of fresh samples, and the surrogate on them, over cycles"),
    "surrogate": ("#c07a1a", "surrogate steps, over cycles"),
}
_OTHER = ("#556070", "over steps")
Series = Sequence[tuple[int, float]]


def curves(points: Sequence[Point], *, without: Sequence[str] = ()) -> str:
    """All curves, phase by phase.

    Args:
        without: phases that are shown elsewhere.
    """
    by_phase: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for point in points:
        for name, value in point.values.items():
            if point.phase not in without:
                series = by_phase.setdefault(point.phase, {}).setdefault(name, [])
                series.append((point.step, value))
    if not by_phase:
        return quiet("No curve was written.")
    room, parts = _MAX_CURVES, []
    for phase, named in by_phase.items():
        colour, text = _PHASES.get(phase, _OTHER)
        shown = dict(sorted(named.items())[:room])
        room -= len(shown)
        images = "".join(chart({name: it}, name, [colour]) for name, it in shown.items())
        left_out = len(named) - len(shown)
        note = quiet(f"{left_out} more in metrics.jsonl.") if left_out else ""
        parts.append(
            f'<h3><span style="color:{colour}">●</span> {escape(phase)} '
            f'<span class="quiet">{text}</span></h3><div class="charts">{images}</div>{note}'
        )
    return "".join(parts)


def chart(
    series: Mapping[str, Series],
    title: str,
    colours: Sequence[str],
    *,
    best: int | None = None,
    stop: int | None = None,
) -> str:
    """A small picture of one or a few curves on one axis.

    Args:
        best: step of the version that is kept, which gets a green line.
        stop: step where the run was ended early, which gets a dashed red line.
    """
    figure, axes = new_axes(3.1, 1.95, left=0.5, right=0.1)
    axes.grid(alpha=0.25, linewidth=0.6)
    for (name, points), colour in zip(series.items(), colours, strict=False):
        _draw(axes, points, colour, name)
    _mark(axes, best, stop)
    # parse_math off: a name with dollar signs is a name and no formula.
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    if len(series) > 1:
        axes.legend(fontsize=6.5, frameon=False)
    return picture(figure, title)


def two_scales(
    left: Mapping[str, Series],
    right: Mapping[str, Series],
    title: str,
    *,
    best: int | None,
    stop: int | None,
) -> str:
    """A wide picture of curves of two different sizes over the same steps."""
    figure, axes = new_axes(8.4, 3.4, left=0.65, right=0.65, below=0.75)
    axes.grid(alpha=0.25, linewidth=0.6)
    handles = []
    for (name, points), colour in zip(left.items(), ("#c0392b", "#c07a1a"), strict=False):
        handles += _draw(axes, points, colour, name)
    other = axes.twinx()
    other.tick_params(labelsize=7)
    other.spines[["top", "left"]].set_visible(False)
    greens = ("#1d7a46", "#2f5fb3", "#7a5ea8", "#4aa3a2", "#556070")
    for (name, points), colour in zip(right.items(), greens, strict=False):
        handles += _draw(other, points, colour, name)
    _mark(axes, best, stop)
    axes.set_ylabel("trained on", fontsize=8, color="#c0392b")
    other.set_ylabel("held out", fontsize=8, color="#1d7a46")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    legend = axes.legend(
        handles=handles, fontsize=8, frameon=False, ncols=len(handles),
        loc="upper center", bbox_to_anchor=(0.5, -0.16),
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)
    return picture(figure, title, "wide")


def new_axes(
    width: float, height: float, *, left: float, right: float, below: float = 0.28
) -> tuple[Figure, Axes]:
    """An empty chart; margins are in inches, as matplotlib's own layout takes longer than all."""
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    figure.subplots_adjust(left / width, below / height, 1 - right / width, 1 - 0.28 / height)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _draw(axes: Axes, points: Series, colour: str, name: str) -> list[Line2D]:
    marker = "o" if len(points) <= _MARKED else ""
    x, y = zip(*points, strict=True)
    label = name if not name.startswith("_") else f" {name}"  # one that begins so has no legend
    return axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=1.5, label=label)


def _mark(axes: Axes, best: int | None, stop: int | None) -> None:
    if best is not None:
        axes.axvline(best, color="#1d7a46", linewidth=1.2, alpha=0.8)
    if stop is not None:
        axes.axvline(stop, color="#c0392b", linewidth=1.2, linestyle="--", alpha=0.8)


def picture(figure: Figure, alt: str, css: str = "") -> str:
    """A chart as an image that lies in the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return image(data_uri(buffer.getvalue()), alt, css)
