"""Looking after a run: failures within their budget, actors alive, curves written, limits kept.

Each look is short: whoever is slow, or has no place yet, is seen again at the next one.
`Supervisor.watch` returns when the learner has ended; whatever goes wrong meanwhile, a learner that
is at work is asked to stop before anybody ends it, as what it has learned is whole.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from actors.fleet import FleetGaveUpError
from buffer.errors import ReplayError, ReplayUnavailable
from buffer.records import Counters
from buffer.replay import Replay
from deploy.callbacks import Callbacks
from deploy.evaluation.monitor import Monitor
from deploy.fleet.fleets import Fleets
from deploy.profile import Profile
from deploy.run.curves import Curves
from deploy.run.failures import Failures
from deploy.run.memory import resident_mb
from deploy.run.metrics import RunMetrics
from deploy.run.progress import STARTING, Progress
from deploy.run.ranks import Ranks, RunFailedError
from deploy.run.stop import Stop
from deploy.settings.run_config import RunConfig

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_MEMORY_EVERY_S = 3.0


class StopAskedError(Exception):
    """The run is to stop in the middle of its last evaluation."""


class Supervisor:
    """One run's supervision.

    Args:
        monitor: of the policy's evaluations, which may end the run early.
        stopping: set when the run is asked to stop.
        stop: whether it is to stop, by that or by its own limit.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        ranks: Ranks,
        fleets: Fleets,
        replay: Replay,
        monitor: Monitor,
        stopping: threading.Event,
        stop: Stop,
        metrics: RunMetrics,
        profile: Profile,
        callbacks: Callbacks,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._profile = profile
        self._callbacks = callbacks
        self._ranks = ranks
        self._fleets = fleets
        self._replay = replay
        self._monitor = monitor
        self._stopping = stopping
        self._stop = stop
        self._learner_works = True
        self._silent_since: float | None = None
        self._measured_at = 0.0
        self.peak_mb = 0.0

    def watch(self, curves: Curves) -> bool:
        """Until the learner has ended; True: it trained to the end. False: it was stopped.

        Raises:
            RunFailedError: the learner failed, or too many records did.
            FleetGaveUpError: a sampler or a reward server cannot be kept alive.
        """
        try:
            return self._watch(curves)
        except Exception as error:
            if self._learner_works:
                log.error("the run fails, and its learner is asked to stop: %r", error)
                self._let_learner_end(curves)
            raise

    def _watch(self, curves: Curves) -> bool:
        while (counters := self._counters()) is None:
            time.sleep(_LOOK_EVERY_S)
        failures = Failures(self._config.limits.failure_budget, self._replay, counters)
        with Progress(total_cycles=self._config.method.cycles) as progress:
            while True:
                with self._profile.spent("driver", "looking"):
                    if (finished := self._poll(failures)) is not None:
                        break
                    self.write_rows(curves)
                    counters = self._counters() or counters
                    failures.check(counters)
                    progress.show(snapshot(self._ranks.last, counters))
                    self._show(counters)
                    self._ranks.ensure_published()
                    self._monitor.look(self._ranks.last)
                    self._measure_memory()
                    if self._must_stop(time.monotonic()):
                        return False
                with self._profile.spent("driver", "idle"):
                    time.sleep(_LOOK_EVERY_S)
            self.write_rows(curves)
        return finished

    def _let_learner_end(self, curves: Curves) -> None:
        """Waits for the learner's checkpoint; what else fails here hides no error."""
        self._stop.fail(time.monotonic())
        try:
            self._ranks.ask_to_stop()
            while not self._must_stop(time.monotonic()) and self._ranks.poll() is None:
                time.sleep(_LOOK_EVERY_S)
            self.write_rows(curves)
        except Exception:
            log.warning("the learner did not end in order", exc_info=True)

    def tend(self) -> None:
        """A look while the result is measured, which a reward's own fleet may be needed for.

        Raises:
            StopAskedError: the run is asked to stop.
        """
        if self._stopping.is_set():
            raise StopAskedError("stopped before the result was measured")
        # Training is over: neither samplers nor the replay are needed for what is left.
        with contextlib.suppress(ReplayError, FleetGaveUpError):
            if (counters := self._counters()) is not None:
                self._show(counters)
        self._measure_memory()

    def _show(self, counters: Counters) -> None:
        """How it stands: on the page of the fleets, as metrics, in the profile."""
        now_known = snapshot(self._ranks.last, counters)
        page = self._fleets.look({**now_known, **self._for_fleets(counters)})
        if page is not None:
            self._metrics.show_page(page)
            self._metrics.show_counters(counters)
            self._metrics.show_learner(self._ranks.last)
            self._profile.note(page, self._ranks.last, evaluates=self._monitor.evaluates)

    def _measure_memory(self) -> None:
        now = time.monotonic()
        if now - self._measured_at > _MEMORY_EVERY_S:
            resident = resident_mb()
            self.peak_mb, self._measured_at = max(self.peak_mb, resident), now
            self._metrics.show_memory(resident * 2**20)

    def _for_fleets(self, counters: Counters) -> dict[str, Any]:
        """What is known of the run that fleets are shown and scaled by."""
        seconds = self._ranks.last.get("seconds", {})
        return {
            "cycles": self._config.method.cycles,
            "learner_waited_s": {
                role: seconds.get(f"waiting_for_{role}", 0.0) for role in ("samplers", "rewards")
            },
            "queue_share": counters.pending / self._config.replay.max_pending_records,
        }

    def _counters(self) -> Counters | None:
        """What the replay counts; None during an outage that the run still bears.

        Raises:
            ReplayUnavailable: the outage lasts for longer than `replay.outage_s`.
        """
        try:
            counters = self._replay.counters()
        except ReplayUnavailable as error:
            now = time.monotonic()
            self._silent_since = self._silent_since or now
            if now - self._silent_since > self._config.replay.outage_s:
                raise
            log.warning("the run waits for Redis: %s", error)
            return None
        self._silent_since = None
        return counters

    def _poll(self, failures: Failures) -> bool | None:
        """`Ranks.poll`; a learner that failed for want of rewards fails with their reasons.

        One that had no samples, because no sampler has a place, fails with that.
        """
        try:
            finished = self._ranks.poll()
            self._learner_works = finished is None
            return finished
        except RunFailedError as error:
            self._learner_works = False
            with contextlib.suppress(ReplayError):  # its own error then says why
                failures.check(self._replay.counters())
            if self._fleets.lack_place("samplers"):
                raise RunFailedError(
                    f"{error} No sampler has a place in the cluster: continue with --resume once "
                    "a node for them has joined."
                ) from error
            raise

    def _must_stop(self, now: float) -> bool:
        """Asks the learner to stop where that is due; True: it was waited for long enough."""
        if self._stop.is_new(now, asked=self._stopping.is_set()):
            log.info("stopping as soon as all that is done can be saved: %s", self._stop.reason)
            self._ranks.ask_to_stop()
        if not self._stop.is_overdue(now):
            return False
        log.warning("the learner is still busy; resume continues after its newest checkpoint")
        return True

    def write_rows(self, curves: Curves) -> None:
        """Points that have come since the last call, of the learner and of the evaluations."""
        points = []
        for row in (*self._ranks.rows(), *self._monitor.rows()):
            points.append(curves.write(row["step"], row["phase"], row["values"]))
            self._metrics.show_curve(row["phase"], row["values"])
        self._callbacks.points(points)


def _is_mean(name: str) -> bool:
    """Names the mean true reward of fresh samples after so many steps."""
    return name.startswith("reward_") and name.endswith("step")


def snapshot(report: Mapping[str, Any], counters: Counters) -> dict[str, Any]:
    """What live progress shows, from the learner's report and the replay's counters."""
    latest = report.get("latest", {})
    accuracies = [v for k, v in latest.items() if k.startswith(("fresh_acc", "heldout_acc"))]
    return {
        "stage": report.get("stage", STARTING),
        "cycle": report.get("cycle", 0),
        "rewards": {k.removeprefix("reward_"): v for k, v in latest.items() if _is_mean(k)},
        "pair_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "samples": counters.committed,
        "queue": counters.pending,
        "failures": counters.failed,
    }
