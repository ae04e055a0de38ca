"""The summary that says how a run went, and its folder, where one driver is at work at a time."""

import contextlib
import json
import logging
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buffer.records import Counters
from deploy.report.data import versions
from deploy.run.curves import read_points
from deploy.run.files import (
    BEFORE_FILE,
    CLUSTER_FILE,
    CONFIG_FILE,
    LOCK_FILE,
    METRICS_FILE,
    SUMMARY_FILE,
)
from deploy.run.folder_lock import hold, is_held
from deploy.run.shared_folder import START_KEY, SharedFolder
from deploy.settings.problems import ConfigError, Problem
from deploy.settings.resumed import changed_settings
from deploy.settings.run_config import RunConfig
from learner import checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Earlier:
    """What is known of a run's earlier starts.

    Attributes:
        wall_s: seconds that they have taken, as far as they have told.
        record_flops: what the samplers took for a record; None: none told before it was killed.
    """

    wall_s: float = 0.0
    record_flops: float | None = None


@dataclass
class Outcome:
    """Filled in while the run goes on; written whatever way it ends.

    Attributes:
        by_limit: whether a stopped run was stopped by its own `limits.max_wall_s`.
    """

    config: RunConfig
    setup_s: float
    earlier: Earlier = Earlier()
    status: str = "failed"
    begun: float = field(default_factory=time.monotonic)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    by_limit: bool = False
    stopped_early: str | None = None
    exported: str | None = None
    exported_version: str | None = None
    counters: Counters | None = None
    failures: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak_rss_mb: float = 0.0
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """`summary.json`.

        `wall_s` are seconds of all starts of the run. `reward_queries` counts single scores of
        single pictures, `reward_queries_again` those that may have been asked more than once, after
        a failure or a crash; what is asked with a gradient inside the learner is in neither.
        `failures` how often each reason stands among the quarantined records; `reason` is why the
        run failed or stopped, `stopped_early` why `evaluation.stop` ended its training;
        `exported_version` is `last` or `best, of cycle 8`, which `after` are the scores of.
        `flops` are the floating-point operations of sampling and of the learner's policy and
        surrogate steps, on all ranks. Looks at a surrogate's accuracy, decoding and rewards are
        not in them.
        `callbacks` are how often each failed and missed a call before the run's end.
        """
        rewards = self.config.queries_per_record
        counters = vars(self.counters) if self.counters else {}
        return {
            "name": self.config.name,
            "status": self.status,
            "reason": self.reason,
            "stopped_early": self.stopped_early,
            "seed": self.config.seed,
            "before": self.before,
            "after": self.after,
            "wall_s": round(self.earlier.wall_s + time.monotonic() - self.begun, 1),
            "setup_s": self.setup_s,
            "peak_rss_mb": round(self.peak_rss_mb),
            "reward_queries": counters.get("committed", 0) * rewards,
            "reward_queries_again": counters.get("retried", 0) * rewards,
            "records": counters,
            "failures": self.failures,
            "learner_seconds": {name: round(s, 1) for name, s in self.seconds.items()},
            "flops": self._all_flops(),
            "workers": self.workers,
            "callbacks": self.callbacks,
            "exported": self.exported,
            "exported_version": self.exported_version,
            "versions": versions(),
        }

    @property
    def exit_status(self) -> int:
        """Of the driver. A run that its own limit ends has done what it was asked to do: 0.

        Whoever starts failed jobs again would else start it at once, and again.
        """
        if self.status == "stopped":
            return 0 if self.by_limit else 130
        return 0 if self.status == "finished" else 1

    def _all_flops(self) -> dict[str, float]:
        """Of the learner's phases, and of sampling, where any start has told it."""
        flops = {phase: value * self.config.learner.ranks for phase, value in self.flops.items()}
        each = self._record_flops()
        if each is not None and self.counters is not None:
            flops["sampling"] = each * self.counters.issued_records
        return flops

    def _record_flops(self) -> float | None:
        """By living samplers, or as it was in an earlier start, where they had nothing to draw."""
        samplers = [each for each in self.workers.values() if each.get("flops")]
        if not samplers:
            return self.earlier.record_flops
        images = sum(each["images"] for each in samplers)
        return sum(sampler["flops"] for sampler in samplers) / max(images, 1)


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.shared = SharedFolder(self.path, secrets.token_hex(8))

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
            ValueError: `problem` says why, or another driver is at work there.
            ConfigError: the run there was begun with other settings; its folder is left as it is.
        """
        if problem := self.problem(resume=resume):
            raise ValueError(problem)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._locked = hold(self.path / LOCK_FILE)
            # Not before: whoever had the lock until now may have changed what lies there.
            if resume and (changed := self.changed(config)):
                os.close(self._locked)
                raise ConfigError(changed, f"the run in {self.path}")
            self._write_config(config)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error}") from error

    def _write_config(self, config: RunConfig) -> None:
        """At once or not at all: a run whose config is lost cannot be compared with another."""
        partial = self.path / f"{CONFIG_FILE}.partial"
        partial.write_text(config.to_json(), encoding="utf-8")
        partial.replace(self.path / CONFIG_FILE)

    def is_held(self) -> bool:
        """Whether a driver is at work here; not noticed on a file system without locks."""
        return is_held(self.path / LOCK_FILE)

    def checkpointed_cycle(self) -> int | None:
        """Cycles behind the newest checkpoint, less one: the last step whose curves count."""
        found = checkpoint.newest(self.path)
        return checkpoint.place_of(found)[0] - 1 if found else None

    def read_before(self) -> dict[str, float]:
        """The evaluation before training, when an earlier start of the run has made it."""
        path = self.path / BEFORE_FILE
        return json.loads(path.read_text()) if path.exists() else {}

    def write_before(self, metrics: dict[str, float]) -> None:
        (self.path / BEFORE_FILE).write_text(json.dumps(metrics))

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
        (self.path / CLUSTER_FILE).write_text(json.dumps(told))

    def close(self, outcome: Outcome) -> dict[str, Any]:
        """Writes the summary, the result's card, and the report; returns the summary."""
        from deploy.report.card import Form, write_card
        from deploy.report.write import write_report

        summary = outcome.summary()
        (self.path / SUMMARY_FILE).write_text(json.dumps(summary, indent=2))
        if outcome.exported is not None:
            form: Form = "adapter" if outcome.config.model.trainable == "lora" else "unet"
            write_card(self.path, outcome.config, summary, form, Path(outcome.exported))
        report = write_report(self.path)
        log.info("%s after %.0f s; report: %s", outcome.status, summary["wall_s"], report)
        if outcome.after:
            for name, value in outcome.after.items():
                log.info("%-14s %.3f -> %.3f", name, outcome.before.get(name, float("nan")), value)
        return summary
