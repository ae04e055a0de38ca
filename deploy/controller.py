"""The driver of a run: starts its processes, watches them, ends them, writes what remains.

    server ─► board, evaluator ─► rewards, samplers ─► learner ranks ─► watch ─► evaluate ─► end

The controller moves no latents and no weights, and imports no torch: it reads counters and
journals. Whatever way a run ends, its processes end with it.
"""

import contextlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray

from actors.fleet import Fleet
from buffer.errors import ReplayError
from buffer.records import Counters
from buffer.redis_replay import RedisReplay
from deploy.build import Plan, ReplayServerHost, reward_server, sampler
from deploy.curves import Curves
from deploy.outcome import Outcome, RunFolder, resident_mb
from deploy.progress import Progress
from deploy.ranks import EvaluatorHandle, Ranks, RunFailedError
from deploy.run_config import RunConfig
from learner.policy.board import PolicyBoard

log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
# Longer than the learner's own grace, so that a stopped cycle can be saved.
_STOP_TIMEOUT_S = 25.0
_SERVER_TIMEOUT_S = 90.0


class Controller:
    """One run, from the first process to the report.

    Args:
        environ: REDIS_URL, FLEETUNE_RUNS and FLEETUNE_SETUP_S are read.
        resume: continue from the newest checkpoint in the run's folder.
    """

    def __init__(self, config: RunConfig, environ: Mapping[str, str], *, resume: bool) -> None:
        self._config = config
        self._environ = environ
        self._resume = resume
        self._folder = RunFolder(config.run_folder(environ))
        self._stopping = threading.Event()
        self._peak_mb = 0.0

    def run(self) -> int:
        """Runs to the end; the exit status of the job."""
        self._heed_signals()
        try:
            self._folder.open(self._config, resume=self._resume)
        except ValueError as error:
            log.error("%s", error)
            return 2
        outcome = Outcome(self._config, setup_s=float(self._environ.get("FLEETUNE_SETUP_S") or 0))
        try:
            with contextlib.ExitStack() as stack:
                self._run(stack, outcome)
        except (RunFailedError, ReplayError) as error:
            log.error("the run failed: %s", error)
        outcome.peak_rss_mb = self._peak_mb
        self._folder.close(outcome)
        return {"finished": 0, "stopped": 130}.get(outcome.status, 1)

    def _run(self, stack: contextlib.ExitStack, outcome: Outcome) -> None:
        config = self._config
        ray.init(address="auto", namespace=config.name, logging_level=logging.WARNING)
        stack.callback(ray.shutdown)
        replay = self._replay(stack)
        plan = Plan(config, replay, self._folder.path)
        board = ray.remote(PolicyBoard).options(name="policy-board", num_cpus=0).remote()
        evaluator = EvaluatorHandle(config, board, self._folder.path)
        before = self._folder.read_before()
        measuring = None if before else evaluator.measure("before", version=None)
        fleets = self._start_fleets(stack, plan, board)
        ranks = Ranks(plan, board)
        stack.callback(ranks.stop, timeout_s=_STOP_TIMEOUT_S)
        ranks.start(resume=self._resume)
        with Curves(self._folder.path, resume_step=self._resume_step()) as curves:
            finished = self._watch(ranks, fleets, replay, curves)
        outcome.before = before or evaluator.result(measuring)
        self._folder.write_before(outcome.before)
        if finished:
            version = ranks.last["published"]
            outcome.after = evaluator.result(evaluator.measure("after", version=version))
            outcome.exported = evaluator.result(evaluator.export(version))
        outcome.note(replay.counters(), ranks.last)
        outcome.status = "finished" if finished else "stopped"

    def _start_fleets(self, stack: contextlib.ExitStack, plan: Plan, board: Any) -> list[Fleet]:
        """Reward servers and samplers; they are ended in reverse, when the stack closes."""
        scoring, actors = self._config.scoring, self._config.actors
        rewards = Fleet(
            partial(reward_server, plan),
            name="reward",
            actor_options={"num_cpus": scoring.num_cpus, "num_gpus": scoring.num_gpus},
        )
        samplers = Fleet(
            partial(sampler, plan, board),
            name="sampler",
            actor_options={"num_cpus": actors.num_cpus, "num_gpus": actors.num_gpus},
        )
        stack.callback(rewards.stop)
        stack.callback(samplers.stop)
        rewards.start(scoring.servers)
        samplers.start(actors.count)
        return [rewards, samplers]

    def _replay(self, stack: contextlib.ExitStack) -> RedisReplay:
        """The run's replay, on the server that is given or on one of its own."""
        config = self._config
        url = config.redis_url(self._environ)
        if url is None:
            # In an actor, because `ray job stop` ends all children of the driver at once, and the
            # learner still has a checkpoint to write.
            host = ray.remote(ReplayServerHost).options(name="replay-server", num_cpus=0).remote()
            folder = self._folder.path / "redis"
            url = ray.get(
                host.start.remote(folder, append_only=config.replay.append_only),
                timeout=_SERVER_TIMEOUT_S,
            )
            stack.callback(lambda: ray.get(host.stop.remote(), timeout=_SERVER_TIMEOUT_S))
        replay = RedisReplay.connect(
            url,
            run=config.name,
            capacity_records=config.replay.capacity_groups * config.actors.group_size,
            max_attempts=config.replay.max_attempts,
        )
        stack.callback(replay.close)
        if not self._resume and replay.counters().issued:
            raise RunFailedError(
                f"Redis already holds a run named {config.name!r}: continue it with --resume, "
                "or give this one another name"
            )
        return replay

    def _watch(
        self, ranks: Ranks, fleets: list[Fleet], replay: RedisReplay, curves: Curves
    ) -> bool:
        """Looks after everybody until the learner has ended; True: it trained to the end."""
        begun, asked = time.monotonic(), False
        limit_s = self._config.limits.max_wall_s or float("inf")
        with Progress(total_cycles=self._config.method.cycles) as progress:
            while (finished := ranks.poll()) is None:
                for row in ranks.rows():
                    curves.write(row["step"], row["phase"], row["values"])
                counters = replay.counters()
                self._check_failures(replay, counters)
                progress.show(snapshot(ranks.last, counters))
                self._peak_mb = max(self._peak_mb, resident_mb())
                for fleet in fleets:
                    fleet.ensure_alive()
                over = time.monotonic() - begun > limit_s
                if (self._stopping.is_set() or over) and not asked:
                    log.info("stopping after the cycle in hand")
                    ranks.ask_to_stop()
                    asked = True
                self._stopping.wait(_LOOK_EVERY_S)
                if asked:
                    time.sleep(_LOOK_EVERY_S)
            for row in ranks.rows():
                curves.write(row["step"], row["phase"], row["values"])
        return finished

    def _check_failures(self, replay: RedisReplay, counters: Counters) -> None:
        """Stops the run when more records fail than its budget bears."""
        budget = self._config.limits.failure_budget
        ended = counters.committed + counters.failed
        if counters.failed < max(budget.minimum, 1) or counters.failed <= budget.share * ended:
            return
        reasons = Counter(reason for _, reason in replay.quarantined(1000))
        told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise RunFailedError(
            f"{counters.failed} of {ended} records have no reward, more than the failure budget "
            f"of {budget.share:.0%}: {told}. Mend the reward, then continue with --resume."
        )

    def _resume_step(self) -> int | None:
        return self._folder.checkpointed_cycle() if self._resume else None

    def _heed_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stopping.set())


def snapshot(report: Mapping[str, Any], counters: Counters) -> dict[str, Any]:
    """What live progress shows, from the learner's report and the replay's counters."""
    latest = report.get("latest", {})
    accuracies = [v for k, v in latest.items() if k.startswith(("fresh_acc", "heldout_acc"))]
    return {
        "stage": report.get("stage", "starting"),
        "cycle": report.get("cycle", 0),
        "reward_1_step": latest.get("reward_1step"),
        "reward_2_step": latest.get("reward_2step"),
        "pair_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "samples": counters.committed,
        "queue": counters.pending,
        "failures": counters.failed,
    }
