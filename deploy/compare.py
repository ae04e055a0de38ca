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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.run.files import CONFIG_FILE, SUMMARY_FILE
from deploy.settings.run_config import config_from_json

_COSTS = {"wall_s": "s", "peak_rss_mb": "MB", "reward_queries": "reward queries"}
OF_NO_RESULT = {"name", "callbacks", "logging"}
"""Settings that change nothing of what a run learns."""


def load_summaries(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The summaries of finished runs that differ in their seeds alone.

    Raises:
        ValueError: there is none in a folder, its run did not train to the end, a seed is there
            twice, or a run has other settings than the first.
    """
    summaries = []
    configs: list[dict[str, Any]] = []
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
        configs.append(_settings(folder))
        if unlike := list(differences(configs[0], configs[-1])):
            raise ValueError(
                f"{folder} is another experiment than {folders[0]} ({'; '.join(unlike)}): a mean "
                "over both says nothing; compare them apart"
            )
    seeds = [summary["seed"] for summary in summaries]
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(
            f"seed {twice[0]} is there twice, which is no second sample; leave one of them out"
        )
    return summaries


def _settings(folder: Path) -> dict[str, Any]:
    """All that its result depends on, but its seed."""
    try:
        config = config_from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no readable {CONFIG_FILE} in {folder}: {error}") from None
    return config.model_dump(mode="json", exclude={"seed", *OF_NO_RESULT})


def differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """Settings in which two configs differ, as `a.b: 1, not 2`."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*there, *here]):
            inner = f"{path}.{key}" if path else str(key)
            yield from differences(there.get(key), here.get(key), inner)
    elif there != here and not (path.endswith("prompts.digest") and here is None):
        # A run notes that itself, and is held to it when it is resumed.
        yield f"{path}: {there}, not {here}"


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
