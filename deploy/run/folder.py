"""The folder of a run, in which one driver is at work at a time."""

import contextlib
import json
import logging
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from buffer.run_owner import Start
from deploy.run.curves import read_points
from deploy.run.files import (
    BEFORE_FILE,
    CLUSTER_FILE,
    CONFIG_FILE,
    LOCK_FILE,
    METRICS_FILE,
    STARTS_FILE,
    SUMMARY_FILE,
)
from deploy.run.folder_lock import hold, is_held
from deploy.run.outcome import Earlier, Outcome
from deploy.run.shared_folder import START_KEY, SharedFolder
from deploy.run.whole_files import write_whole
from deploy.settings.problems import ConfigError, Problem
from deploy.settings.resumed import changed_settings
from deploy.settings.run_config import RunConfig
from learner import checkpoint

log = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run.

    Attributes:
        checkpointed_cycle: of a run that is taken up again, cycles behind its newest checkpoint,
            less one: the last step whose curves count; None: there is no checkpoint.
        replay_start: by which the replay knows whose it is, once the folder is open.
    """

    checkpointed_cycle: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.shared = SharedFolder(self.path, secrets.token_hex(8))
        self.replay_start: Start | None = None

    def problem(self, *, resume: bool) -> str | None:
        """Why a run cannot begin or go on here; None: it can. Changes nothing."""
        there = (self.path / CONFIG_FILE).exists()
        if there and not resume:
            return (
                f"{self.path} holds a run already: continue it with --resume, give this one "
                "another name, or remove the folder"
            )
        if resume and not there:
            return (
                f"{self.path} holds no run to resume; name=... says which one, and without "
                "--resume a new one begins"
            )
        nearest = next(each for each in (self.path, *self.path.parents) if each.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            return (
                f"{self.path} cannot be written, as {nearest} is no folder that this user may "
                "write to; choose another with folder=... or FLEETUNE_RUNS"
            )
        return None

    def changed(self, config: RunConfig) -> list[Problem]:
        """What must be as the run here was begun with, and is not; empty: it can go on so.

        Changes nothing.
        """
        path = self.path / CONFIG_FILE
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(begun, dict):
                raise ValueError("it holds no sections of settings")
        except (OSError, ValueError) as error:
            told = (
                f"{path}, what the run was begun with, cannot be read: {error}. Put it back, or "
                "begin another run; a file that holds {} has it go on, unchecked, with what is "
                "given now"
            )
            return [Problem("name", told)]
        return list(changed_settings(begun, config))

    def open(self, config: RunConfig, *, resume: bool) -> None:
        """Makes the folder, or takes it up again; nobody else may until this process ends.

        Raises:
            ValueError: `problem` says why, another driver is at work there, or all checkpoints are
                damaged.
            ConfigError: the run there was begun with other settings; its folder is left as it is.
        """
        if problem := self.problem(resume=resume):
            raise ValueError(problem)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as on_error:
                locked = hold(self.path / LOCK_FILE)
                on_error.callback(os.close, locked)
                # Not before: whoever had the lock until now may have changed what lies there.
                if resume:
                    self._take_up(config)
                self.replay_start = self._next_start(is_new=not resume)
                write_whole(self.path / CONFIG_FILE, config.to_json())
                on_error.pop_all()
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error}") from error

    def _take_up(self, config: RunConfig) -> None:
        if changed := self.changed(config):
            raise ConfigError(changed, f"the run in {self.path}")
        if newest := checkpoint.newest(self.path):
            # The file of settings may tell of fewer cycles than are done.
            done = checkpoint.read_state(newest)["method"]["round_ends"]
            if odd := config.method.odd_round(done):
                raise ConfigError(
                    [Problem("method.groups_per_cycle", odd)], f"the run in {self.path}"
                )
            self.checkpointed_cycle = checkpoint.place_of(newest)[0] - 1

    def _next_start(self, *, is_new: bool) -> Start:
        """One more start, written down before the replay hears of it.

        Raises:
            ValueError: the list of earlier ones is damaged.
        """
        path, former = self.path / STARTS_FILE, []
        if not is_new and path.exists():
            try:
                former = [str(token) for token in json.loads(path.read_text())["starts"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, the starts of the run, cannot be read: {error!r}. Put it back; "
                    f"without it the run goes on only where Redis holds nothing of {self.path.name}"
                ) from error
        where = f"{socket.gethostname()}:{self.path}".encode("ascii", "backslashreplace").decode()
        token = f"{where} ({self.shared.start})"
        write_whole(path, json.dumps({"starts": [*former, token]}, indent=2))
        return Start(token=token, former=former, is_new=is_new)

    def is_held(self) -> bool:
        """Whether a driver is at work here; not noticed on a file system without locks."""
        return is_held(self.path / LOCK_FILE)

    def read_before(self) -> dict[str, float]:
        """The evaluation before training, when an earlier start of the run has made it."""
        path = self.path / BEFORE_FILE
        return json.loads(path.read_text()) if path.exists() else {}

    def write_before(self, metrics: dict[str, float]) -> None:
        write_whole(self.path / BEFORE_FILE, json.dumps(metrics))

    def earlier(self) -> Earlier:
        """What earlier starts of the run have told."""
        points = read_points(self.path / METRICS_FILE)
        wall_s, record_flops = points[-1].wall_s if points else 0.0, None
        with contextlib.suppress(OSError, ValueError, KeyError, ZeroDivisionError):
            told = json.loads((self.path / SUMMARY_FILE).read_text())
            wall_s = max(wall_s, float(told["wall_s"]))
            record_flops = told["flops"]["sampling"] / told["records"]["issued_records"]
        return Earlier(wall_s, record_flops)

    def write_cluster(self, cluster: dict[str, str]) -> None:
        """Where commands find the run while it is under way, and what `shared` looks for."""
        told = {**cluster, START_KEY: self.shared.start}
        write_whole(self.path / CLUSTER_FILE, json.dumps(told))

    def close(self, outcome: Outcome) -> dict[str, Any]:
        """Writes the summary, the result's card, and the report; returns the summary.

        An outcome whose summary finds no room has failed. A card or a report that finds none is
        left out, with a line in the log: the summary has told by then how the run went.
        """
        summary = outcome.summary()
        try:
            write_whole(self.path / SUMMARY_FILE, json.dumps(summary, indent=2))
        except OSError as error:
            log.error("the run's end cannot be written: %s", error)
            outcome.status, outcome.reason = "failed", outcome.reason or str(error)
            return outcome.summary()
        report = self._write_pages(outcome, summary)
        log.info("%s after %.0f s; report: %s", outcome.status, summary["wall_s"], report or "none")
        if outcome.after:
            for name, value in outcome.after.items():
                log.info("%-14s %.3f -> %.3f", name, outcome.before.get(name, float("nan")), value)
        return summary

    def _write_pages(self, outcome: Outcome, summary: dict[str, Any]) -> Path | None:
        """The card and the report; where that is, or None: it could not be written."""
        from deploy.report.card import Form, write_card
        from deploy.report.write import write_report

        if outcome.exported is not None:
            form: Form = "adapter" if outcome.config.model.trainable == "lora" else "unet"
            try:
                write_card(self.path, outcome.config, summary, form, Path(outcome.exported))
            except OSError as error:
                log.error("the result's card cannot be written: %s", error)
        try:
            return write_report(self.path)
        except OSError as error:
            log.error("the report cannot be written: %s", error)
            return None
