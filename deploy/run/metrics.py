"""What the Ray dashboard, Prometheus and Grafana see of a run.

The driver exports what it knows already: counts of the replay, counters of every actor, the
learner's seconds and newest values. How single calls and samples are spread, only those know who
make them: reward servers and the learner's ranks export that themselves. Ray puts `ray_` before
every name, and forgets a gauge that is not set for a while.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from buffer.records import Counters
from deploy.run.progress import STARTING


@dataclass(frozen=True)
class Metric:
    """One metric of Prometheus.

    Args:
        name: ends in `_total` where it counts up.
        tags: beside `run`.
        bounds: of a histogram's buckets; empty for what is none.
    """

    name: str
    text: str
    tags: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def counts_up(self) -> bool:
        return self.name.endswith("_total")

    def exported(self) -> Any:
        """Ray's object that takes its values."""
        about: dict[str, Any] = {"description": self.text, "tag_keys": ("run", *self.tags)}
        if self.bounds:
            return Histogram(self.name, boundaries=list(self.bounds), **about)
        return (Counter if self.counts_up else Gauge)(self.name, **about)


RECORDS_TOTAL = Metric(
    "fleetune_records_total",
    "Trajectories since the run's start: issued, committed with their rewards, failed for good, "
    "queued again (retried), evicted from the replay.",
    ("state",),
)
RECORDS = Metric(
    "fleetune_records",
    "Trajectories now: pending their reward, claimed by a reward server, live in the replay.",
    ("state",),
)
LIVE_BYTES = Metric("fleetune_replay_bytes", "Size of the latents in the replay, in bytes.")
QUEUE_SHARE = Metric(
    "fleetune_queue_share",
    "Records that wait for their reward, of those that may; at 1 samplers wait.",
)
CYCLE = Metric("fleetune_cycle", "Cycles that have ended.")
CYCLES = Metric("fleetune_cycles", "Cycles of the whole run.")
STAGE = Metric("fleetune_stage", "1 for what the learner is at.", ("stage",))
LEARNER_SECONDS = Metric(
    "fleetune_learner_seconds_total",
    "Seconds of the learner by phase: policy steps, surrogate steps, waiting_for_samplers, "
    "waiting_for_rewards, publishing weights, checkpoints.",
    ("phase",),
)
FLEET = Metric(
    "fleetune_fleet_actors",
    "Actors of a fleet: wanted, and by state, placing, building, working, draining, down.",
    ("role", "state"),
)
IMAGES = Metric(
    "fleetune_images_total", "Images that an actor has sampled or scored.", ("role", "actor")
)
WORKER_SECONDS = Metric(
    "fleetune_worker_seconds_total",
    "Seconds of an actor by stage; `wait` is without work.",
    ("role", "actor", "stage"),
)
WORKER_FAILURES = Metric(
    "fleetune_worker_failures_total",
    "Batches of an actor that failed, in whole or in part.",
    ("role", "actor"),
)
POLICY_VERSION = Metric(
    "fleetune_sampler_policy_version",
    "Version of the policy that a sampler draws with.",
    ("actor",),
)
CURVE = Metric(
    "fleetune_curve",
    "Newest value of a curve of the run, such as reward_2step of phase fresh or kl_nats of policy.",
    ("phase", "curve"),
)
MEMORY = Metric(
    "fleetune_resident_bytes", "Resident memory of Ray's processes on the driver's node."
)
REWARD_SECONDS = Metric(
    "fleetune_reward_seconds",
    "Seconds that a call of a reward took for its batch of pictures.",
    ("reward",),
    (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
REWARD_FAILURES = Metric(
    "fleetune_reward_failures_total", "Pictures that a call of a reward gave no score.", ("reward",)
)
SAMPLE_STALENESS = Metric(
    "fleetune_sample_staleness_versions",
    "Policy versions that the learner is ahead of the one that drew a sample, when it fetches it.",
    (),
    # Between whole numbers: Ray has no bucket that ends at 0.
    (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 64.5),
)
SAMPLE_AGE = Metric(
    "fleetune_sample_age_seconds",
    "Seconds since a sample was scored, when the learner fetches it.",
    (),
    (1, 3, 10, 30, 100, 300, 1000, 3000, 10000),
)
OF_DRIVER = (
    RECORDS_TOTAL,
    RECORDS,
    LIVE_BYTES,
    QUEUE_SHARE,
    CYCLE,
    CYCLES,
    STAGE,
    LEARNER_SECONDS,
    FLEET,
    IMAGES,
    WORKER_SECONDS,
    WORKER_FAILURES,
    POLICY_VERSION,
    CURVE,
    MEMORY,
)
ALL = (*OF_DRIVER, REWARD_SECONDS, REWARD_FAILURES, SAMPLE_STALENESS, SAMPLE_AGE)
_TOTALS = ("issued_records", "committed", "failed", "retried", "evicted")
_NOW = ("pending", "claimed", "live")
_STATES = ("placing", "building", "working", "draining", "down")


class RunMetrics:
    """Exports a run from its driver; needs Ray."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._exported = {metric.name: metric.exported() for metric in OF_DRIVER}
        self._stages: set[str] = set()
        self._curves: dict[tuple[str, str], float] = {}
        # What counters have been given, by the life of who counts.
        self._counted: dict[tuple[str, tuple[str, ...], str], float] = {}

    def show_counters(self, counters: Counters) -> None:
        """The replay's ledger."""
        counts = vars(counters)
        for name in _TOTALS:
            self._put(RECORDS_TOTAL, counts[name], name.removesuffix("_records"))
        for name in _NOW:
            self._put(RECORDS, counts[name], name)
        self._put(LIVE_BYTES, counts["live_bytes"])

    def show_page(self, page: Mapping[str, Any]) -> None:
        """What `Fleets` shows: the run's progress, and every actor."""
        self._put(CYCLE, page.get("cycle", 0))
        self._put(CYCLES, page.get("cycles", 0))
        self._put(QUEUE_SHARE, page.get("queue_share", 0.0))
        for role, fleet in page.get("fleets", {}).items():
            workers = fleet["workers"]
            self._put(FLEET, fleet["wanted"], role, "wanted")
            for state in _STATES:
                count = sum(row["state"] == state for row in workers.values())
                self._put(FLEET, count, role, state)
            for name, row in workers.items():
                self._put_worker(role, name.partition(" ")[0], row)
        for tags, value in self._curves.items():
            self._put(CURVE, value, *tags)

    def show_learner(self, report: Mapping[str, Any]) -> None:
        """Stage and seconds of the learner's newest report."""
        stage = str(report.get("stage", STARTING))
        self._stages.add(stage)
        for known in self._stages:
            self._put(STAGE, float(known == stage), known)
        for phase, seconds in report.get("seconds", {}).items():
            self._put(LEARNER_SECONDS, seconds, phase)

    def show_curve(self, phase: str, values: Mapping[str, float]) -> None:
        """A new point of the run's curves, exported with every page from now on."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._curves[phase, name] = value

    def show_memory(self, num_bytes: float) -> None:
        """Of the run's processes."""
        self._put(MEMORY, num_bytes)

    def _put_worker(self, role: str, actor: str, row: Mapping[str, Any]) -> None:
        life = str(row.get("owner", ""))
        if "images" in row:
            self._put(IMAGES, row["images"], role, actor, life=life)
        if "failures" in row:
            self._put(WORKER_FAILURES, row["failures"], role, actor, life=life)
        if "policy_version" in row:
            self._put(POLICY_VERSION, row["policy_version"], actor)
        for name, value in row.items():
            if name.endswith("_s"):
                stage = name.removesuffix("_s")
                self._put(WORKER_SECONDS, value, role, actor, stage, life=life)

    def _put(self, metric: Metric, value: float, *tags: str, life: str = "") -> None:
        """A gauge is set; a counter goes up to what its source has reached.

        A source that goes back, such as a learner that resumes, is counted when it is beyond.

        Args:
            life: of the source; another one counts from 0.
        """
        labels = dict(zip(("run", *metric.tags), (self._run, *tags), strict=True))
        exported = self._exported[metric.name]
        if isinstance(exported, Gauge):
            exported.set(float(value), tags=labels)
            return
        key = metric.name, tags, life
        gained = value - self._counted.get(key, 0.0)
        if gained > 0:
            self._counted[key] = float(value)
            exported.inc(gained, tags=labels)


class RewardMetrics:
    """Exports the calls of rewards from a reward server; needs Ray."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._seconds, self._failures = REWARD_SECONDS.exported(), REWARD_FAILURES.exported()

    def called(self, reward: str, seconds: float, num_failed: int) -> None:
        """A call has ended, with so many pictures without a score."""
        tags = {"run": self._run, "reward": reward}
        self._seconds.observe(seconds, tags=tags)
        if num_failed:
            self._failures.inc(num_failed, tags=tags)


class SampleMetrics:
    """Exports how old the samples are that a learner's rank fetches; needs Ray."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._staleness, self._age = SAMPLE_STALENESS.exported(), SAMPLE_AGE.exported()

    def fetched(self, staleness: Sequence[int], age_s: Sequence[float]) -> None:
        """Versions and seconds of every sample."""
        for versions, seconds in zip(staleness, age_s, strict=True):
            self._staleness.observe(versions, tags=self._tags)
            self._age.observe(seconds, tags=self._tags)
