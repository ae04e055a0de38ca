"""A study: a grid of settings and seeds from one file, run by run, and what came out.

    python -m deploy.study deploy/studies/two-step.yaml [--check] [--quick] [--jobs N]

checks every run's config before the first starts, and runs those that are not finished; one that
was interrupted, or killed with the study, is resumed. Where the file tunes its arms, their tries
come first. After each run it writes into the study's folder:

    study.md      tables                 study.csv     a line a score and run
    study.html    the same, curves with 95 % intervals, Pareto fronts and pictures
    tuning.json   every try's score and what it spent, and what was chosen
    runs.tar.xz   settings, curves and summary of every finished run, what was chosen and diagnosed,
                  to publish or to go on from

A run that fails is reported and left out; the others go on. One that was killed, and a try that
failed, is started once more. Runs of `--quick` are others than those of the study; they say that
every arm works, and no more. Exit status 1: not all runs are finished, tries included, or the
diagnosis failed.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.diagnosis import diagnosis_rows
from deploy.local_head import start_child
from deploy.markdown import markdown
from deploy.run.best_effort import BestEffort
from deploy.run.whole_files import write_whole
from deploy.settings.run_config import load_config
from deploy.study.archive import write_archive
from deploy.study.before import take_before
from deploy.study.file import (
    Cell,
    Study,
    cells_of,
    load_study,
    tries_of,
)
from deploy.study.notes import unfinished_rows
from deploy.study.report import study_html
from deploy.study.sections import told_of
from deploy.study.tables import csv_of, finished, refuse_unknown_scores
from deploy.study.tuning import (
    TUNING_FILE,
    Chosen,
    choices_json,
    choose,
    recorded_choices,
)

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED = {128 + number for number in _SIGNALS}
"""Exit statuses of a run that was ended from elsewhere; the study ends with it."""
_LOOK_S = 0.2


class Runner:
    """Runs cells, some of them at a time, and hands every signal on to them.

    Args:
        folder: of the study; with several at a time each writes its log there.
        jobs: runs at a time.
        lock: an open file that runs keep open, so that its lock is held until they have ended.
        after_each: called when one has ended.

    Attributes:
        stopped: exit status of a study that was asked to end, or one of whose runs was; None: none.
        failed: exit statuses of runs that did not end with 0, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        jobs: int,
        in_cluster: bool,
        lock: int,
        after_each: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._jobs = jobs
        self._in_cluster = in_cluster
        self._after_each = after_each
        self._writing = BestEffort("its tables", meanwhile="which the next end of a run writes")
        self._children: dict[subprocess.Popen[bytes], Cell] = {}
        self._told: set[subprocess.Popen[bytes]] = set()
        self.stopped: int | None = None
        self.failed: dict[str, int] = {}

    def run(self, cells: Sequence[Cell], known: Sequence[Cell]) -> None:
        """Those that are not finished.

        Args:
            known: runs of the study that may have measured what others would measure again.
        """
        waiting = [cell for cell in cells if cell.summary is None]
        total = len(waiting)
        before = {
            number: signal.signal(number, self._asked_to_end)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN  # as under nohup
        }
        try:
            while self._children or (waiting and self.stopped is None):
                while waiting and self.stopped is None and len(self._children) < self._jobs:
                    cell = waiting.pop(0)
                    log.info("run %d of %d: %s", total - len(waiting), total, cell.config.name)
                    with BestEffort("an evaluation before training that is known"):
                        if take_before(cell, known):
                            log.info("its evaluation before training is that of a finished run")
                    self._start(cell)
                self._take_ended()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def killed(self, cell: Cell) -> bool:
        """Whether a signal ended its last start, such as the kernel's where memory is short."""
        return self.failed.get(cell.config.name, 0) > 128

    def _start(self, cell: Cell) -> None:
        command = cell.command(in_cluster=self._in_cluster)
        with contextlib.ExitStack() as stack:
            output: Any = sys.stderr
            if self._jobs > 1:
                path = self._folder / "logs" / f"{cell.config.name}.log"
                path.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(path.open("ab"))
            # A Ctrl-C of the terminal is handed on, or it would come twice, which means at once.
            child = start_child(command, environ=os.environ, stdout=output, keep=[self._lock])
        self._children[child] = cell
        self.failed.pop(cell.config.name, None)
        if self.stopped is not None and child not in self._told:  # meanwhile, unknown to the signal
            child.send_signal(self.stopped - 128)

    def _take_ended(self) -> None:
        ended = [child for child in self._children if child.poll() is not None]
        if not ended:
            time.sleep(_LOOK_S)
        for child in ended:
            cell, status = self._children.pop(child), child.returncode
            status = 128 - status if status < 0 else status
            if status != 0:
                log.error("%s ended with status %d", cell.config.name, status)
                self.failed[cell.config.name] = status
            elif cell.summary is None:  # its limit of time has ended it
                why = (cell.told or {}).get("reason")
                log.error("%s ended before it was finished: %s", cell.config.name, why)
            if status in _STOPPED and self.stopped is None:
                self._asked_to_end(status - 128, None)
            with self._writing:
                self._after_each()

    def _asked_to_end(self, number: int, _frame: object) -> None:
        """Tells every run, once for each signal: a second one ends a run at once."""
        self.stopped = self.stopped or 128 + number
        for child in tuple(self._children):
            self._told.add(child)
            child.send_signal(number)


def main() -> int:
    """The command; 2 if the file or a config in it is wrong, 1 if a run is not finished."""
    options = _options()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    name = options.study.stem + ("-quick" if options.quick else "")
    try:
        study = load_study(options.study)
        study = study.quickly() if options.quick else study
        tries = tries_of(study, name)
        cells = _checked(study, name, tries)
    except ValueError as error:
        log.error("%s", error)
        return 2
    trials = [cell for found in tries.values() for cell in found]
    waiting = [cell for cell in (*trials, *cells) if cell.summary is None]
    total = len(trials) + len(cells)
    log.info("%d runs, %d of them finished", total, total - len(waiting))
    if options.check:
        for cell in waiting:
            log.info("%s", shlex.join(cell.command(in_cluster=options.in_cluster)))
        return 0
    folder = _folder_of([*trials, *cells], name)
    folder.mkdir(parents=True, exist_ok=True)
    lock = locked(folder)
    chosen: dict[str, Chosen] = {}

    def write() -> None:
        chosen.update(choose(study, name, tries, folder))
        unfinished = unfinished_rows([*trials, *cells], runner.failed)
        _write(folder, name, study, cells, trials, chosen, unfinished)

    diagnosed = _diagnosed(study, folder, lock)
    if not diagnosed:
        log.error("the diagnosis failed; the runs go on without it")
    runner = Runner(
        folder, jobs=options.jobs, in_cluster=options.in_cluster, lock=lock, after_each=write
    )
    for _ in range(2):  # one that fails, by whatever chance, would leave its arm fewer tries
        if runner.stopped is None:
            runner.run(trials, trials)
    with BestEffort("its tables", meanwhile="which the next end of a run writes"):
        write()
    if runner.stopped is not None:
        return runner.stopped
    try:
        cells = _with_best(study, name, chosen)
    except ValueError as error:
        log.error("%s", error)
        return 2
    runner.run(cells, [*trials, *cells])
    if runner.stopped is None:
        lost = [cell for cell in cells if cell.told is None or runner.killed(cell)]
        runner.run(lost, [*trials, *cells])
    try:
        write()
        sys.stdout.write((folder / "study.md").read_text(encoding="utf-8"))
    except OSError as error:
        log.error("the tables could not be written: %s; run the same command again", error)
        return runner.stopped or 1
    if runner.stopped is not None:
        return runner.stopped
    complete = diagnosed and len(cells) == len(study.seeds) * len(study.arms)
    return 0 if complete and all(cell.summary for cell in (*trials, *cells)) else 1


def locked(folder: Path) -> int:
    """Waits until nobody else is at work on a study, runs of an earlier start included."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for runs of an earlier start of this study to end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _folder_of(cells: Sequence[Cell], name: str) -> Path:
    """The study's, beside those of its runs."""
    return cells[0].folder.parent / name


def _diagnosed(study: Study, folder: Path, lock: int) -> bool:
    """Measures what the file asks for, if that is not done; False: it failed."""
    asked = study.diagnosis
    if asked is None:
        return True
    command = [
        *(sys.executable, "-m", "deploy.diagnose", study.config, *study.settings),
        *("--steps", *map(str, asked.steps), "--prompts", str(asked.prompts)),
        *("--draws", str(asked.draws), "--batch", str(asked.batch), "--out", str(folder)),
    ]
    if _diagnosis_rows(study, folder):
        return True
    log.info("measuring what a policy gradient has to go by")
    child = start_child(command, environ=os.environ, stdout=sys.stderr, keep=[lock])
    return child.wait() == 0


def _diagnosis_rows(study: Study, folder: Path) -> list[list[str]]:
    """Of what the file asks for; empty where that is nothing, or not measured."""
    if study.diagnosis is None:
        return []
    return diagnosis_rows(folder, load_config(study.config, study.settings), study.diagnosis)


def _options() -> argparse.Namespace:
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
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time")
    parser.add_argument(
        "--in-cluster", action="store_true", help="in the Ray cluster that this runs in, as a job"
    )
    return parser.parse_args()


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, given {value}")
    return value


def _checked(study: Study, name: str, tries: Mapping[str, Sequence[Cell]]) -> list[Cell]:
    """The study's runs with what is chosen so far, or the first tries.

    Raises:
        ValueError: a config is wrong with any of an arm's tries, no run measures a score that the
            file names, its model is none that can be diagnosed, or a run lies there already that
            had other settings.
    """
    refuse_unknown_scores(study, name)
    if study.diagnosis and not load_config(study.config, study.settings).model.is_few_step:
        raise ValueError(
            f"diagnosis: {study.config} has a model of many steps, and only one of few steps can "
            "be diagnosed; drop it, or give another config"
        )
    count = max((len(found) for found in tries.values()), default=0)
    for number in range(count):
        cells_of(study, name, {arm: study.arms[arm].tries[number] for arm in tries})
    folder = _folder_of(cells_of(study, name), name)
    trials = [cell for found in tries.values() for cell in found]
    _refuse_other_settings(trials)
    if all(cell.summary is not None for cell in trials):
        return _with_best(study, name, choose(study, name, tries, folder))
    # Before hours of further tries, those runs that an earlier choice has begun.
    _refuse_other_settings(cells_of(study, name, recorded_choices(study, folder)))
    return cells_of(study, name)


def _with_best(study: Study, name: str, chosen: Mapping[str, Chosen]) -> list[Cell]:
    for arm, told in chosen.items():
        if told.values is None:
            log.error("arm %s is left out: none of its tries has finished with a score", arm)
    best = {arm: told.values for arm, told in chosen.items() if told.values is not None}
    cells = cells_of(study, name, best)
    _refuse_other_settings(cells)
    return cells


def _refuse_other_settings(cells: Sequence[Cell]) -> None:
    """Raises ValueError if a run that has begun is not the one that the file asks for."""
    told = [
        f"{cell.folder} holds a run with other settings ({'; '.join(changed)})"
        for cell in cells
        if (changed := cell.changed_settings())
    ]
    if told:
        raise ValueError(
            "\n".join([*told, "remove these folders, or give the study's file another name"])
        )


def _write(
    folder: Path,
    name: str,
    study: Study,
    cells: Sequence[Cell],
    trials: Sequence[Cell],
    chosen: Mapping[str, Chosen],
    unfinished: Sequence[Sequence[str]],
) -> None:
    """Everything that is known so far."""
    results, tried = finished(study, cells), finished(study, trials)
    diagnosis = _diagnosis_rows(study, folder)
    told = told_of(study, results, tried, chosen, diagnosis, unfinished)
    shown = [f"## {each.title}\n\n{markdown(each.rows)}" for each in told.sections]
    notes = [f"{text}.\n" for text in told.notes]
    write_whole(folder / "study.md", "\n".join([*shown, *notes]))
    write_whole(folder / "study.csv", csv_of(study, results))
    write_whole(folder / "study.html", study_html(name, study, results, told))
    if chosen:
        write_whole(folder / TUNING_FILE, choices_json(chosen))
    write_archive([*trials, *cells], folder)
