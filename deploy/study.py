"""A study: a grid of settings and seeds from one file, run by run, and the table of what came out.

    python -m deploy.study deploy/studies/sqdf-ablation.yaml [--check] [--in-cluster]

checks every run's config before the first starts, runs those that are not finished (one that was
interrupted is resumed), and writes `study.md` and `study.csv` into the study's folder after each.
A run that fails is reported and left out; the others go on. Exit status 1: not all are finished.

The file:

    config: deploy/configs/shapes-sqdf.yaml     what all runs have in common
    settings: [method.cycles=10]                a.b=value, as on the command line
    seeds: [0, 1, 2]
    arms:                                       what each changes
      paper: []
      no-discount: [method.discount=1]
      ddpo:                                     a preset of its own
        config: deploy/configs/shapes-ddpo.yaml
        quick: [method.kept_steps=2]
    quick: [method.cycles=1]                    with --quick, one seed of every arm
    scores: [exact_50step, diversity]           columns of the table; default: all

Runs of `--quick` are others than those of the study; they say that every arm works, and no more.
"""

import argparse
import csv
import io
import json
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from deploy.compare import changes
from deploy.config_problems import ConfigError
from deploy.config_yaml import YamlError, read_preset
from deploy.outcome import SUMMARY_FILE
from deploy.plan import has_begun
from deploy.run_config import RunConfig, load_config
from learner.settings import Section, Whole

log = logging.getLogger(__name__)
_COSTS = ("reward queries", "TFLOPs", "wall s")
_STOPPED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
"""Exit statuses of a run that was asked to end; the study ends with it."""


class Arm(Section):
    """What an arm changes."""

    config: str | None = None
    """A preset of its own; null: that of the study."""
    settings: tuple[str, ...] = ()
    """Overrides."""
    quick: tuple[str, ...] = ()
    """Overrides of its quick run."""


class Study(Section):
    """The file of a study."""

    config: str = Field(min_length=1)
    """The preset that all runs share, but those of arms with their own."""
    settings: tuple[str, ...] = ()
    """Overrides of all runs."""
    seeds: tuple[Whole, ...] = Field(min_length=1)
    """Every arm is run with each of them."""
    arms: dict[str, Arm] = Field(min_length=1)
    """By name; a list instead of a section is its overrides."""
    quick: tuple[str, ...] = ()
    """Overrides of all quick runs."""
    scores: tuple[str, ...] | None = None
    """Scores in the table; null: all that every run has."""

    @field_validator("arms", mode="before")
    @classmethod
    def _a_list_is_overrides(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"settings": arm} if isinstance(arm, list | tuple) else arm
            for name, arm in value.items()
        }

    def quickly(self) -> "Study":
        """One small run of every arm."""
        arms = {
            name: Arm(config=arm.config, settings=(*arm.settings, *self.quick, *arm.quick))
            for name, arm in self.arms.items()
        }
        return self.model_copy(update={"seeds": self.seeds[:1], "arms": arms})

    @field_validator("seeds")
    @classmethod
    def _no_seed_stands_twice(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"a seed stands twice: {list(value)}")
        return value


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    arm: str
    config: RunConfig
    arguments: tuple[str, ...]

    @property
    def summary(self) -> dict[str, Any] | None:
        """What it came to; None as long as it is not finished."""
        try:
            path = self.config.run_folder(os.environ) / SUMMARY_FILE
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary if summary.get("status") == "finished" else None

    def command(self, *, in_cluster: bool) -> list[str]:
        """What runs it, or goes on with it."""
        resume = ["--resume"] if has_begun(self.config, os.environ) else []
        if in_cluster:
            return [sys.executable, "-m", "deploy.launch", *resume, *self.arguments]
        flags = ["--run", self.config.name, *resume]
        return [sys.executable, "-m", "deploy.local", *flags, "--", *self.arguments]


def load_study(path: Path) -> Study:
    """A study's file.

    Raises:
        ValueError: unreadable, or not a study.
    """
    try:
        return Study.model_validate(read_preset(path))
    except YamlError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{path}: " + "; ".join(lines)) from None


def cells_of(study: Study, name: str) -> list[Cell]:
    """Its runs, all arms of a seed before the next seed.

    Raises:
        ValueError: a run's config is wrong; names every such arm.
    """
    cells, wrong = [], {}
    for seed in study.seeds:
        for arm, changed in study.arms.items():
            run = f"name={json.dumps(f'{name}-{arm}-seed{seed}')}"
            values = (*study.settings, *changed.settings, f"seed={seed}", run)
            preset = changed.config or study.config
            try:
                config = load_config(preset, values)
            except ConfigError as error:
                wrong[arm] = str(error)
                continue
            cells.append(Cell(arm, config, (preset, *values)))
    if wrong:
        raise ValueError("\n".join(f"arm {arm}: {text}" for arm, text in wrong.items()))
    return cells


def table(study: Study, cells: Sequence[Cell]) -> str:
    """Markdown: a row an arm, its finished runs' means and 95 % intervals of the change."""
    by_arm = _by_arm(cells)
    scores = _scores(study, by_arm)
    head = ["arm", "runs", *scores, *_COSTS]
    lines = [_row(head), _row(["---"] * len(head))]
    for arm, summaries in by_arm.items():
        runs = f"{len(summaries)}/{len(study.seeds)}"
        if not summaries:
            lines.append(_row([arm, runs, *([""] * (len(scores) + len(_COSTS)))]))
            continue
        costs = [
            f"{sum(s['reward_queries'] for s in summaries) / len(summaries):,.0f}",
            f"{sum(_tflops(s) for s in summaries) / len(summaries):,.1f}",
            f"{sum(s['wall_s'] for s in summaries) / len(summaries):,.0f}",
        ]
        lines.append(_row([arm, runs, *(_change(summaries, s) for s in scores), *costs]))
    return "\n".join(lines) + "\n"


def csv_of(study: Study, cells: Sequence[Cell]) -> str:
    """A line for every score of every finished run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    costs = ["reward_queries", "tflops", "wall_s"]
    writer.writerow(["arm", "seed", "score", "before", "after", *costs])
    scores = _scores(study, _by_arm(cells))
    for cell in cells:
        if (summary := cell.summary) is None:
            continue
        for score in scores:
            values = [summary[side].get(score) for side in ("before", "after")]
            costs = [summary["reward_queries"], _tflops(summary), summary["wall_s"]]
            writer.writerow([cell.arm, cell.config.seed, score, *values, *costs])
    return out.getvalue()


def _by_arm(cells: Sequence[Cell]) -> dict[str, list[dict[str, Any]]]:
    by_arm: dict[str, list[dict[str, Any]]] = {cell.arm: [] for cell in cells}
    for cell in cells:
        if (summary := cell.summary) is not None:
            by_arm[cell.arm].append(summary)
    return by_arm


def _scores(study: Study, by_arm: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    summaries = [summary for arm in by_arm.values() for summary in arm]
    if not summaries:
        return list(study.scores or ())
    shared = [
        score
        for score in summaries[0]["after"]
        if all(score in summary[side] for summary in summaries for side in ("before", "after"))
    ]
    return shared if study.scores is None else [s for s in study.scores if s in shared]


def _change(summaries: Sequence[dict[str, Any]], score: str) -> str:
    before, after, gained, half = changes(summaries, score)
    interval = "" if math.isnan(half) else f" ± {half:.3f}"
    return f"{before:.3f} → {after:.3f} ({gained:+.3f}{interval})"


def _tflops(summary: Mapping[str, Any]) -> float:
    """Of sampling and learning, in 10¹²."""
    return sum(summary["flops"].values()) / 1e12


def _row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _run(command: Sequence[str]) -> int:
    """Exit status of a command that is told of every signal that asks this process to end."""
    # In a session of its own, or a terminal's Ctrl-C would reach it twice, which means at once.
    child = subprocess.Popen(command, start_new_session=True)
    before = {
        number: signal.signal(number, lambda number, _: child.send_signal(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unfinished(cells: Sequence[Cell]) -> Iterator[Cell]:
    return (cell for cell in cells if cell.summary is None)


def main() -> int:
    """The command; 2 if the file or a config in it is wrong, 1 if a run is not finished."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, metavar="FILE")
    parser.add_argument(
        "--check", action="store_true", help="say what would run, and start nothing"
    )
    parser.add_argument("--quick", action="store_true", help="one small run of every arm")
    parser.add_argument(
        "--in-cluster", action="store_true", help="in the Ray cluster that this runs in, as a job"
    )
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    name = options.study.stem + ("-quick" if options.quick else "")
    try:
        study = load_study(options.study)
        study = study.quickly() if options.quick else study
        cells = cells_of(study, name)
    except ValueError as error:
        log.error("%s", error)
        return 2
    waiting = list(_unfinished(cells))
    log.info("%d runs, %d of them finished", len(cells), len(cells) - len(waiting))
    if options.check:
        for cell in waiting:
            log.info("%s", shlex.join(cell.command(in_cluster=options.in_cluster)))
        return 0
    folder = cells[0].config.run_folder(os.environ).parent / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(waiting, start=1):
        log.info("run %d of %d: %s", number, len(waiting), cell.config.name)
        status = _run(cell.command(in_cluster=options.in_cluster))
        if status != 0:
            log.error("%s ended with status %d", cell.config.name, status)
        if status in _STOPPED:
            return status
        (folder / "study.md").write_text(table(study, cells), encoding="utf-8")
        (folder / "study.csv").write_text(csv_of(study, cells), encoding="utf-8")
    sys.stdout.write(table(study, cells))
    return 1 if any(_unfinished(cells)) else 0


if __name__ == "__main__":
    sys.exit(main())
