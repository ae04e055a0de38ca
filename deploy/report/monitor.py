"""Over-optimisation in a report: what is trained on against what is not, over the cycles."""

import re
from collections.abc import Mapping, Sequence

from deploy.report.data import RunData
from deploy.report.markup import badge, quiet
from deploy.report.plots import Series, chart, two_scales
from deploy.run.curves import Point
from deploy.run.files import EVALUATION_PHASE, FRESH_PHASE

_SIGNS = {
    "kl_nats": "KL to the untouched policy, nats a step",
    "clean_distance": "distance of the last clean prediction",
    "diversity": "diversity at a fixed prompt",
    "colour_entropy": "colour entropy, bits",
    "sharpness": "sharpness, variance of the Laplacian",
    "unscored": "share of scores that failed; means are over the others",
}
_ON_FRESH = {
    "fresh_gap": "surrogate less truth, deviations",
    "fresh_rank_correlation": "rank correlation with the truth",
    "fresh_accuracy": "pair accuracy on fresh samples",
}
_STEP = re.compile(r"_(\d+)step$")
_COLOURS = ("#2f5fb3", "#c07a1a", "#2b8a5b", "#7a5ea8")


def monitor(run: RunData) -> str:
    """The section; says so where nothing was measured beside training."""
    measured = [point for point in run.points if point.phase == EVALUATION_PHASE]
    if len({point.step for point in measured}) < 2:
        return quiet("Nothing was evaluated beside training; evaluation.every_cycles asks for it.")
    best = run.best_cycle
    reason = run.summary.get("stopped_early")
    stop = measured[-1].step if reason else None
    scores = _scores(measured)
    trained = {name: it for name, it in scores.items() if name.startswith("reward_")}
    held_out = {name: it for name, it in scores.items() if name not in trained}
    headline = two_scales(
        trained, held_out, "trained reward and held-out scores", best=best, stop=stop
    )
    signs = _named(measured, list(_SIGNS))
    panels = [
        chart({name: it}, _SIGNS[name], _COLOURS, best=best, stop=stop)
        for name, it in signs.items()
    ]
    fresh = [point for point in run.points if point.phase == FRESH_PHASE]
    panels += [
        chart(named, title, _COLOURS, best=best, stop=stop)
        for prefix, title in _ON_FRESH.items()
        if (named := _by_prefix(fresh, prefix))
    ]
    return (
        f"<p>{_told(run, reason)}</p>"
        + quiet(
            "All on the same held-out prompts and noise. A green line is the best version that "
            "was evaluated, a dashed red one the early end. A reward that rises while the others "
            "fall is over-optimised."
        )
        + headline
        + f'<div class="charts">{"".join(panels)}</div>'
    )


def _told(run: RunData, reason: object) -> str:
    parts = [badge(f"result: {run.summary.get('exported_version') or 'nothing yet'}", "good")]
    if run.best_cycle is not None:
        parts.append(badge(f"best beside training: cycle {run.best_cycle}"))
    if reason:
        parts.append(badge(f"stopped early: {reason}"))
    return "".join(parts)


def _scores(points: Sequence[Point]) -> dict[str, Series]:
    """Those of the last sampling step: `exact_2step` and not `exact_1step`."""
    names = dict.fromkeys(name for point in points for name in point.values)
    steps = {name: int(found.group(1)) for name in names if (found := _STEP.search(name))}
    last = max(steps.values(), default=0)
    return _named(points, [name for name, step in steps.items() if step == last])


def _named(points: Sequence[Point], names: Sequence[str]) -> dict[str, Series]:
    series = {
        name: [(point.step, point.values[name]) for point in points if name in point.values]
        for name in names
    }
    return {name: it for name, it in series.items() if it}


def _by_prefix(points: Sequence[Point], prefix: str) -> Mapping[str, Series]:
    names = dict.fromkeys(name for point in points for name in point.values)
    named = _named(points, [name for name in names if name.startswith(f"{prefix}_")])
    return {name.removeprefix(f"{prefix}_"): it for name, it in named.items()}
