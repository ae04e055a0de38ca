"""Pictures of a study's report: curves with 95 % intervals over the seeds, and Pareto fronts."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from deploy.report.plots import new_axes, picture

COLOURS = (
    "#2f5fb3", "#c0392b", "#1d7a46", "#c07a1a", "#7a5ea8", "#4aa3a2", "#8c5a3c", "#d46a9f",
    "#556070", "#a3a500",
)  # fmt: skip
LINES = (("-", "o"), ("--", "s"), (":", "^"))
"""Styles of the lines and marks of the first ten, of the next ten, and so on."""
Band = Sequence[tuple[float, float, float]]
"""Places, means, and half their 95 % intervals; 0 of one run alone."""


def colour_of(number: int) -> str:
    """Of an arm or a family, by its place in the file."""
    return COLOURS[number % len(COLOURS)]


def style_of(number: int) -> tuple[str, str]:
    """Likewise the line and the mark, which tell apart those of one colour."""
    return LINES[number // len(COLOURS) % len(LINES)]


def bands(series: Mapping[str, Band], title: str, along: str) -> str:
    """Curves of all arms over one axis, each in its interval.

    Args:
        along: what the places are.
    """
    figure, axes = new_axes(8.4, 3.6, left=0.65, right=2.2, below=0.6)
    for number, (name, band) in enumerate(series.items()):
        if band:
            places, means, halves = zip(*band, strict=True)
            colour, (line, mark) = colour_of(number), style_of(number)
            axes.plot(
                places, means, line, color=colour, marker=mark, markersize=3, label=_shown(name)
            )
            low = [mean - half for mean, half in zip(means, halves, strict=True)]
            high = [mean + half for mean, half in zip(means, halves, strict=True)]
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(along, fontsize=8)
    _finish(axes, title)
    return picture(figure, title, "wide")


def front(
    points: Mapping[str, Sequence[Sequence[float]]],
    edges: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    names: tuple[str, str],
    before: Sequence[float] | None,
) -> str:
    """Where the runs of every family end, and the Pareto front of each seed.

    Args:
        points: of every run, by family.
        edges: points of a seed's front, by the first score; of all seeds of a family.
        names: of the two scores.
        before: where all began.
    """
    figure, axes = new_axes(8.4, 4.2, left=0.65, right=2.2, below=0.6)
    for number, (family, ends) in enumerate(points.items()):
        if ends:
            colour, (line, mark) = colour_of(number), style_of(number)
            axes.scatter(
                *zip(*ends, strict=True), color=colour, marker=mark, s=14, label=_shown(family)
            )
            for edge in edges[family]:
                first, second = zip(*edge, strict=True)
                axes.step(first, second, line, where="pre", color=colour, linewidth=0.8, alpha=0.5)
    if before is not None:
        axes.scatter([before[0]], [before[1]], color="black", marker="x", s=40, label="before")
    axes.set_xlabel(names[0], fontsize=8, parse_math=False)
    axes.set_ylabel(names[1], fontsize=8, parse_math=False)
    title = " × ".join(names)
    _finish(axes, title)
    return picture(figure, title, "wide")


def _finish(axes: Axes, title: str) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)


def _shown(name: str) -> str:
    return name if not name.startswith("_") else f" {name}"  # one that begins so has no legend
