"""How a run went: filled in while it goes on, and told in its summary."""

import time
from dataclasses import dataclass, field
from typing import Any

from buffer.records import Counters
from deploy.report.data import versions
from deploy.settings.run_config import RunConfig


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
