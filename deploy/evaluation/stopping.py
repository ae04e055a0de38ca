"""When a run ends before its last cycle, and which version of its policy is kept: pure rules.

A history is a run's evaluations in order, that of the untouched policy first. All of them are on
the same prompts and the same noise, so they differ by the policy alone. An evaluation that lacks
what a rule looks at is passed over. No rule knows how large the error of a score is: one of few
pictures may fall by chance, which `patience` and `min_gain` are for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.settings.sections import DiversityBelow, HeldOutFalls, KlAbove, StopRule


@dataclass(frozen=True)
class Measured:
    """One evaluation.

    Args:
        cycle: that lie behind the policy; 0 is the untouched one.
        metrics: as `Evaluator.evaluate` names them.
    """

    cycle: int
    metrics: Mapping[str, float]


def why_stop(history: Sequence[Measured], rule: StopRule | None, score: str | None) -> str | None:
    """Why the rule of a config ends the run now; None: it goes on.

    Args:
        score: the name that versions are compared by, `evaluation.best_by`.
    """
    match rule:
        case HeldOutFalls():
            assert score is not None
            return held_out_falls(
                history, score=score, patience=rule.patience, min_gain=rule.min_gain
            )
        case KlAbove():
            return kl_above(history, nats=rule.nats)
        case DiversityBelow():
            return diversity_below(history, share=rule.share)
    return None


def held_out_falls(
    history: Sequence[Measured], *, score: str, patience: int, min_gain: float
) -> str | None:
    """Fires when `patience` evaluations in a row were no more than `min_gain` above the best.

    The best is the highest value that counted as a gain, the first evaluation's to begin with, so
    slow gains count once they add up to more than `min_gain`. A run whose score gains that much
    at least once in any `patience` evaluations is never ended. It does not tell a score that
    falls from one that has come to rest: neither is worth further training.
    """
    known = [(each.cycle, each.metrics[score]) for each in history if score in each.metrics]
    if not known:
        return None
    (best_cycle, best), stale = known[0], 0
    for cycle, value in known[1:]:
        if value > best + min_gain:
            best_cycle, best, stale = cycle, value, 0
        else:
            stale += 1
    if stale < patience:
        return None
    (cycle, value), more = known[-1], f" by more than {min_gain:g}" if min_gain else ""
    return (
        f"{score} was {value:.4g} after cycle {cycle}, and {best:.4g} after cycle {best_cycle}: "
        f"{stale} evaluations were no better{more}"
    )


def kl_above(history: Sequence[Measured], *, nats: float) -> str | None:
    """Fires when the newest KL to the untouched policy is above `nats`.

    Between two evaluations the KL may have been higher, and the steps in hand are still taken.
    """
    kl = history[-1].metrics.get("kl_nats") if history else None
    if kl is None or kl <= nats:
        return None
    return f"the KL to the untouched policy is {kl:.4g} nats a step, above {nats:g}"


def diversity_below(history: Sequence[Measured], *, share: float) -> str | None:
    """Fires when the newest diversity is below `share` of the untouched policy's."""
    if not history or any("diversity" not in each.metrics for each in (history[0], history[-1])):
        return None
    first, now = (each.metrics["diversity"] for each in (history[0], history[-1]))
    if now >= share * first:
        return None
    return f"diversity is {now:.4g}, below {share:g} of the untouched policy's {first:.4g}"


def best_of(history: Sequence[Measured], rule: StopRule | None, score: str) -> Measured | None:
    """The evaluation with the highest score among those that a bound of the rule lets pass.

    The earliest of equal ones, which is nearest to the untouched policy; that one passes every
    bound. None where nobody has the score.
    """
    passing = [
        each
        for each in history
        if score in each.metrics and (each is history[0] or _passes(history[0], each, rule))
    ]
    return max(passing, key=lambda each: each.metrics[score], default=None)


def _passes(first: Measured, measured: Measured, rule: StopRule | None) -> bool:
    match rule:
        case KlAbove() | DiversityBelow():
            return why_stop([first, measured], rule, None) is None
    return True
