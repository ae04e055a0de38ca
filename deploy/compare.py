"""What runs of several seeds show together.

    python -m deploy.compare runs/shapes-lasro-seed*

prints a Markdown table of every score, mean over the runs: before, after, the change, and its 95 %
confidence interval (Student's t over the runs' changes). Below it, what the runs cost.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.run.files import SUMMARY_FILE

_COSTS = {"wall_s": "s", "peak_rss_mb": "MB", "reward_queries": "reward queries"}


def load_summaries(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The summaries of finished runs.

    Raises:
        ValueError: there is none in a folder, or its run did not train to the end.
    """
    summaries = []
    for folder in folders:
        try:
            summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"no readable {SUMMARY_FILE} in {folder}: {error}") from None
        if summary.get("status") != "finished":
            raise ValueError(
                f"the run in {folder} is {summary.get('status')!r}, not 'finished'; leave it out, "
                "or resume it"
            )
        summaries.append(summary)
    return summaries


def changes(summaries: Sequence[dict[str, Any]], score: str) -> tuple[float, float, float, float]:
    """Means over the runs of a score: before, after, change, and half the 95 % interval of it.

    The half is nan for a single run.
    """
    before = [summary["before"][score] for summary in summaries]
    after = [summary["after"][score] for summary in summaries]
    gained = [b - a for a, b in zip(before, after, strict=True)]
    means = (statistics.mean(values) for values in (before, after, gained))
    return (*means, half_interval(gained))


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean, by Student's t; nan for a single value."""
    if len(values) < 2:
        return math.nan
    from scipy import stats

    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Markdown, with a line of costs below."""
    scores = [
        score
        for score in summaries[0]["after"]
        if all(score in summary[side] for summary in summaries for side in ("before", "after"))
    ]
    lines = ["| score | before | after | change | 95 % interval |", "|---|---|---|---|---|"]
    for score in scores:
        before, after, gained, half = changes(summaries, score)
        interval = (
            f"{gained - half:+.3f} to {gained + half:+.3f}" if not math.isnan(half) else "one run"
        )
        lines.append(f"| {score} | {before:.3f} | {after:.3f} | {gained:+.3f} | {interval} |")
    seeds = ", ".join(str(summary["seed"]) for summary in summaries)
    costs = [
        f"{min(values):,.0f} to {max(values):,.0f} {unit}"
        for name, unit in _COSTS.items()
        if (values := [summary[name] for summary in summaries])
    ]
    return "\n".join([*lines, "", f"Seeds {seeds}; a run took {', '.join(costs)}."])


def main() -> int:
    """The command; 2 if a folder holds no finished run."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    try:
        summaries = load_summaries(parser.parse_args().folders)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(table(summaries) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
