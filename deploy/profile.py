"""`python -m deploy.profile RUN_FOLDER`: where every second of every role of a run went.

The driver keeps the account while the run goes on, from what its actors tell of themselves once a
second, and over all starts of the run. A role's seconds are those of all its actors together:
eight samplers have eight in a second. What no actor can tell, such as the time until Ray has found
a place for it, is what the driver saw of it. `other` is what is left of an actor's time.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deploy.run.best_effort import BestEffort
from deploy.run.files import PROFILE_FILE
from deploy.run.progress import STARTING
from deploy.run.whole_files import write_whole

log = logging.getLogger(__name__)
_WRITE_EVERY_S = 5.0
_USAGE_ERROR = 2


class Profile:
    """The account of one run, kept by its driver.

    Args:
        folder: of the run; an account that is there is gone on with.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / PROFILE_FILE
        self._seconds: dict[str, dict[str, float]] = read_profile(folder)
        self._last: dict[tuple[str, str], float] = {}
        self._writing = BestEffort(PROFILE_FILE)
        self._noted_at = self._written_at = time.monotonic()

    def add(self, role: str, stage: str, seconds: float) -> None:
        """Seconds of a role that went to a stage."""
        stages = self._seconds.setdefault(role, {})
        stages[stage] = stages.get(stage, 0.0) + seconds

    def note(self, page: Mapping[str, Any], report: Mapping[str, Any], *, evaluates: bool) -> None:
        """What has happened since the last note.

        Args:
            page: of the fleets, as `Fleets.look` shows it.
            report: the learner's.
            evaluates: whether the evaluator is at work.
        """
        now = time.monotonic()
        passed_s, self._noted_at = now - self._noted_at, now
        stage = str(report.get("stage", STARTING))
        self.add("run", stage, passed_s)
        self.add("evaluator", "evaluating" if evaluates else "idle", passed_s)
        told = None if stage == STARTING else report.get("seconds")
        self._note_actor("learner", "learner", passed_s, told, "starting")
        for role, fleet in page.get("fleets", {}).items():
            for name, row in fleet["workers"].items():
                told = {k.removesuffix("_s"): v for k, v in row.items() if k.endswith("_s")}
                works = row["state"] in ("working", "draining")
                self._note_actor(role, name, passed_s, told if works else None, row["state"])
        if now - self._written_at > _WRITE_EVERY_S:
            self.write()

    @contextmanager
    def spent(self, role: str, stage: str) -> Iterator[None]:
        """Adds the seconds of the block."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add(role, stage, time.monotonic() - begun)

    def write(self) -> None:
        """Keeps it in the run's folder, unless that takes nothing now.

        Not flushed to the disk: the driver would wait for that every few seconds.
        """
        rounded = {
            role: {stage: round(seconds, 3) for stage, seconds in stages.items()}
            for role, stages in self._seconds.items()
        }
        with self._writing:
            write_whole(self._file, json.dumps(rounded, indent=2), durable=False)
        self._written_at = time.monotonic()

    def _note_actor(
        self,
        role: str,
        actor: str,
        passed_s: float,
        told: Mapping[str, float] | None,
        state: str,
    ) -> None:
        """An actor's seconds since the last note: by its own sums, else by its state."""
        if not told:
            self.add(role, state, passed_s)
            return
        gained_s = 0.0
        for stage, total in told.items():
            # What is seen first may be a sum from before this start, or be that of a checkpoint
            # that the learner went back to.
            before = self._last.get((actor, stage), total - min(total, passed_s))
            gained = max(0.0, total - before)
            self._last[actor, stage] = total
            self.add(role, stage, gained)
            gained_s += gained
        # Below 0 where it tells now what it did before the last note; the sum is right.
        self.add(role, "other", passed_s - gained_s)


def read_profile(folder: Path) -> dict[str, dict[str, float]]:
    """Role -> stage -> seconds; empty where a run has kept none yet, or a lost machine tore it."""
    path = folder / PROFILE_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("%s is left out, as it cannot be read: %s", path, error)
        return {}


def profile_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
    """For a terminal: a row for every stage, the largest of a role first."""
    table = Table(title="where the seconds went", title_justify="left")
    table.add_column("role")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for role, stages in seconds.items():
        total = sum(stages.values())
        ordered = sorted(stages.items(), key=lambda item: -item[1])
        for number, (stage, spent) in enumerate(ordered):
            share = f"{100 * spent / total:.1f} %" if total > 0 else "–"
            table.add_row("" if number else role, stage, f"{spent:,.1f}", share)
        table.add_row("", "all", f"{total:,.1f}", "", end_section=True)
    return table


def main() -> int:
    """The command; 2: there is no such account."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.profile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    folder = parser.parse_args().folder
    seconds = read_profile(folder)
    if not seconds:
        sys.stderr.write(
            f"{folder} holds no {PROFILE_FILE}: give the folder of a run that has begun, such as "
            "runs/mine\n"
        )
        return _USAGE_ERROR
    Console().print(profile_table(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
