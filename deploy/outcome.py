"""What a run leaves in its folder, and the summary that says how it went.

runs/<name>/
    config.json      resolved config             summary.json  before, after, cost
    metrics.jsonl    curves                      report.html   everything, for a person
    tensorboard/     curves again                pictures/     before and after, .npz
    checkpoints/     to resume from              redis/        the replay's append-only file
    adapter/ or unet/   the result, as diffusers loads it
"""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from buffer.records import Counters
from deploy.report_data import CONFIG_FILE, SUMMARY_FILE, versions
from deploy.run_config import RunConfig
from learner import checkpoint

log = logging.getLogger(__name__)
_BEFORE_FILE = "before.json"


@dataclass
class Outcome:
    """Filled in while the run goes on; written whatever way it ends."""

    config: RunConfig
    setup_s: float
    status: str = "failed"
    begun: float = field(default_factory=time.monotonic)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    exported: str | None = None
    counters: Counters | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_mb: float = 0.0

    def note(self, counters: Counters, report: dict[str, Any]) -> None:
        """The replay's last counts and where the learner's time went."""
        self.counters = counters
        self.seconds = report.get("seconds", {})

    def summary(self) -> dict[str, Any]:
        """`summary.json`; `reward_queries` counts single scores of single pictures."""
        rewards = len(self.config.rewards) * self.config.rewarded_steps
        counters = vars(self.counters) if self.counters else {}
        return {
            "name": self.config.name,
            "status": self.status,
            "seed": self.config.seed,
            "before": self.before,
            "after": self.after,
            "wall_s": round(time.monotonic() - self.begun, 1),
            "setup_s": self.setup_s,
            "peak_rss_mb": round(self.peak_rss_mb),
            "reward_queries": counters.get("committed", 0) * rewards,
            "records": counters,
            "learner_seconds": {name: round(s, 1) for name, s in self.seconds.items()},
            "exported": self.exported,
            "versions": versions(),
        }


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def open(self, config: RunConfig, *, resume: bool) -> None:
        """Makes the folder, or takes it up again.

        Raises:
            ValueError: a run of this name is there and is not to be resumed, or the other way.
        """
        there = (self.path / CONFIG_FILE).exists()
        if there and not resume:
            raise ValueError(
                f"{self.path} holds a run already: continue it with --resume, give this one "
                "another name, or remove the folder"
            )
        if resume and not there:
            raise ValueError(f"{self.path} holds no run to resume; leave --resume out to begin one")
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / CONFIG_FILE).write_text(config.to_json())

    def checkpointed_cycle(self) -> int | None:
        """Cycles behind the newest checkpoint, less one: the last step whose curves count."""
        found = checkpoint.newest(self.path)
        return int(found.name) - 1 if found else None

    def read_before(self) -> dict[str, float]:
        """The evaluation before training, when an earlier start of the run has made it."""
        path = self.path / _BEFORE_FILE
        return json.loads(path.read_text()) if path.exists() else {}

    def write_before(self, metrics: dict[str, float]) -> None:
        (self.path / _BEFORE_FILE).write_text(json.dumps(metrics))

    def close(self, outcome: Outcome) -> None:
        """Writes the summary and the report."""
        from deploy.report import write_report

        summary = outcome.summary()
        (self.path / SUMMARY_FILE).write_text(json.dumps(summary, indent=2))
        report = write_report(self.path)
        log.info("%s after %.0f s; report: %s", outcome.status, summary["wall_s"], report)
        if outcome.after:
            for name, value in outcome.after.items():
                log.info("%-14s %.3f -> %.3f", name, outcome.before.get(name, float("nan")), value)


def resident_mb() -> float:
    """Resident memory of this session's Ray processes and this one, in MB, as a plain sum.

    Pages that processes share are counted in each of them, so it errs on the high side.
    """
    own = psutil.Process()
    ancestors = {own.pid, *(parent.pid for parent in own.parents())}
    total = 0
    for process in psutil.process_iter(["pid", "ppid", "name", "memory_info", "cmdline"]):
        info = process.info
        words = " ".join(info["cmdline"] or [])
        if info["pid"] in ancestors or "ray" in words or "valkey" in words:
            total += info["memory_info"].rss if info["memory_info"] else 0
    return total / 2**20
