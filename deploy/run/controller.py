"""The driver of a run: starts its processes, has them watched, ends them, writes what remains.

    server ─► board, evaluator ─► rewards, samplers ─► learner ranks ─► watch ─► evaluate ─► end

The controller moves no latents and no weights, and imports no torch: it reads counters and
journals. Whatever way a run ends, its processes end with it.
"""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.fleet import Fleet, FleetGaveUpError, FleetSettings
from buffer.embedded import new_socket_url
from buffer.errors import ReplayError
from buffer.redis_replay import RedisReplay
from buffer.replay import Replay
from buffer.sharded_replay import ShardedReplay, connect_replay
from deploy.callbacks import Callbacks, callbacks_of
from deploy.evaluation.handle import EvaluatorHandle
from deploy.evaluation.monitor import Monitor
from deploy.fleet.autoscale import Bounds
from deploy.fleet.desk import DESK, FleetDesk
from deploy.fleet.fleets import Fleets
from deploy.fleet.reward_pools import (
    RewardHost,
    fleet_name,
    reward_worker,
    role_of,
)
from deploy.profile import Profile
from deploy.run.bookings import Room
from deploy.run.build import reward_server, sampler
from deploy.run.curves import Curves
from deploy.run.failures import failure_reasons
from deploy.run.files import EVALUATION_PHASE
from deploy.run.folder import RunFolder
from deploy.run.job_log import set_up
from deploy.run.metrics import RunMetrics
from deploy.run.outcome import Earlier, Outcome
from deploy.run.parts import RunParts
from deploy.run.ranks import Ranks, RunFailedError, on_nodes
from deploy.run.replay_servers import (
    ReplayServerHost,
    out_of_reach,
    replay_settings,
    server_folders,
)
from deploy.run.stop import Stop, patience_s
from deploy.run.supervise import StopAskedError, Supervisor
from deploy.settings.run_config import RunConfig
from deploy.settings.sections import Actors, RewardFleet, Scoring
from learner.policy.board import PolicyBoard

log = logging.getLogger(__name__)
_SERVER_TIMEOUT_S = 90.0
# Ray notices a killed driver, or a lost machine, and ends its actors within that.
_TAKE_OVER_TIMEOUT_S = 60.0


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
        self._desk: Any = None

    def run(self) -> int:
        """Runs to the end; the exit status of the job."""
        try:
            # Before the folder is made: a name is not used up where there is no cluster.
            self._join_ray()
            self._check_reach()
            self._take_namespace()
            self._folder.open(self._config, resume=self._resume)
            # Until here a stop ends the process, as Ray's own handlers do: nothing is lost yet.
            self._heed_signals()
            self._folder.write_cluster(cluster_of_this_process())
        except ValueError as error:
            log.error("%s", error)
            return 2
        outcome = Outcome(
            self._config,
            setup_s=float(self._environ.get("FLEETUNE_SETUP_S") or 0),
            earlier=self._folder.earlier() if self._resume else Earlier(),
        )
        callbacks = callbacks_of(self._config, self._folder.path)
        callbacks.start(self._config, resumed=self._resume)
        try:
            with contextlib.ExitStack() as stack:
                self._run(stack, outcome, callbacks)
        except StopAskedError as error:
            outcome.status, outcome.reason = "stopped", str(error)
            log.warning("%s; --resume measures it", error)
        except (RunFailedError, FleetGaveUpError, ReplayError) as error:
            outcome.reason = str(error)
            log.error("the run failed: %s", error)
        except Exception as error:  # the outermost: a summary is written in any case
            outcome.reason = f"{type(error).__name__}: {error}"
            log.exception("the run failed")
        outcome.callbacks = callbacks.stats()
        callbacks.end(self._folder.close(outcome))
        return outcome.exit_status

    def _run(self, stack: contextlib.ExitStack, outcome: Outcome, callbacks: Callbacks) -> None:
        """Everything between two states of the folder; `stack` ends what was started."""
        config = self._config
        stack.callback(ray.shutdown)
        replay = self._replay(stack)
        parts = RunParts(config, replay, self._folder.shared)
        board = (
            ray.remote(PolicyBoard)
            .options(
                name="policy-board",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=beside_driver(),
            )
            .remote()
        )
        ranks = Ranks(parts, board)
        stack.callback(ranks.kill)
        # First: a cluster that has no room for all can lack a sampler, and not the learner.
        ranks.start(resume=self._resume)
        evaluator = EvaluatorHandle(config, self._folder.shared)
        monitor = Monitor(
            config,
            evaluator,
            self._folder,
            board=board,
            stop=partial(ranks.ask_to_stop, for_result=True),
            resume=self._resume,
        )
        fleets = self._start_fleets(stack, parts, board)
        # Who watches must not wait with the others when Redis does not answer.
        watcher = type(replay)(replace(replay.settings, outage_s=0.0, timeout_s=5.0))
        stack.callback(watcher.close)
        profile = Profile(self._folder.path)
        stack.callback(profile.write)
        stop = Stop(config.limits, patience_s=patience_s(self._environ), begun=time.monotonic())
        supervisor = Supervisor(
            config,
            ranks=ranks,
            fleets=fleets,
            replay=watcher,
            monitor=monitor,
            stopping=self._stopping,
            stop=stop,
            metrics=RunMetrics(config.name),
            profile=profile,
            callbacks=callbacks,
        )
        with self._curves() as curves:
            try:
                trained = supervisor.watch(curves)
            finally:
                outcome.before = monitor.before
                outcome.peak_rss_mb = supervisor.peak_mb
                _note(outcome, ranks, fleets, watcher)
            if trained or (monitor.stopped_early and not self._stopping.is_set()):
                # Trained to the end, a learner publishes the weights to keep as one more version.
                weights = ranks.published()
                cycle = ranks.last["published"] - int(trained)
                with profile.spent("run", "last evaluation and export"):
                    result = monitor.conclude(weights, cycle, supervisor.tend)
                supervisor.write_rows(curves)
                outcome.before, outcome.after = monitor.before, result.after
                outcome.exported, outcome.exported_version = result.exported, result.version
                outcome.stopped_early = None if trained else monitor.stopped_early
                outcome.status = "finished"
            else:
                outcome.status, outcome.reason = "stopped", stop.reason
                outcome.by_limit = stop.is_by_limit

    def _join_ray(self) -> None:
        """Joins the cluster that this process is a job of.

        Raises:
            ValueError: there is none.
        """
        try:
            ray.init(
                address="auto",
                namespace=self._config.name,
                logging_level=logging.WARNING,
                runtime_env={"worker_process_setup_hook": set_up},
            )
        except ConnectionError as error:
            raise ValueError(
                "there is no Ray cluster here: start a run on this machine by `python -m "
                "deploy.local --run NAME -- CONFIG`, and on a cluster by `ray job submit "
                "--working-dir . -- python -m deploy.launch CONFIG`"
            ) from error

    def _check_reach(self) -> None:
        """Makes sure that whoever needs the replay's servers can reach them.

        Raises:
            ValueError: they would be embedded, and the cluster is on several machines.
        """
        rooms = [Room.of(node) for node in ray.nodes() if node["Alive"]]
        if problem := out_of_reach(self._config, self._environ, rooms, socket.gethostname()):
            raise ValueError(problem)

    def _take_namespace(self) -> None:
        """Waits until nothing of an earlier driver of this run is left, and takes its place.

        Raises:
            ValueError: another driver of this run is at work.
        """
        deadline = time.monotonic() + _TAKE_OVER_TIMEOUT_S
        while names := ray.util.list_named_actors():
            if time.monotonic() > deadline:
                raise ValueError(
                    f"a run named {self._config.name!r} is under way on this cluster: stop it "
                    f"first, or give this one another name (its actors: {', '.join(names)})"
                )
            time.sleep(0.5)
        self._desk = (
            ray.remote(FleetDesk)
            .options(name=DESK, num_cpus=0, max_restarts=-1, scheduling_strategy=beside_driver())
            .remote()
        )

    def _start_fleets(self, stack: contextlib.ExitStack, parts: RunParts, board: Any) -> Fleets:
        """Reward servers and samplers; they are ended in reverse, when the stack closes."""
        scoring, actors = self._config.scoring, self._config.actors
        settings = FleetSettings(build_s=self._config.build_s)
        rewards = Fleet(
            partial(reward_server, parts),
            name="reward",
            actor_options=fleet_options(scoring),
            settings=settings,
        )
        samplers = Fleet(
            partial(sampler, parts, board),
            name="sampler",
            actor_options=fleet_options(actors),
            settings=settings,
        )
        pools = {
            role_of(name): (reward_pool(parts, name, reward.fleet), reward.fleet)
            for name, reward in self._config.rewards.items()
            if reward.fleet
        }
        for pool, _ in pools.values():
            stack.callback(pool.stop)
        stack.callback(rewards.stop)
        stack.callback(samplers.stop)
        # First, and then waited for: what all of them need to end is what the slowest needs.
        for fleet in (samplers, rewards, *(pool for pool, _ in pools.values())):
            stack.callback(fleet.ask_to_stop)
        auto = {"rewards": scoring.auto, "samplers": actors.auto}
        auto |= {role: settings.auto for role, (_, settings) in pools.items()}
        counts = {"rewards": scoring.servers, "samplers": actors.count}
        counts |= {role: settings.servers for role, (_, settings) in pools.items()}
        fleets = Fleets(
            {
                "rewards": rewards,
                "samplers": samplers,
                **{role: pool for role, (pool, _) in pools.items()},
            },
            desk=self._desk,
            folder=self._folder.path,
            bounds={role: Bounds(*limits) for role, limits in auto.items() if limits},
            useful={"samplers": self._config.useful_samplers},
        )
        fleets.start(counts)
        return fleets

    def _replay(self, stack: contextlib.ExitStack) -> RedisReplay | ShardedReplay:
        """The run's replay, on the servers that are given or on its own."""
        config = self._config
        urls = config.redis_url(self._environ) or self._start_servers(stack)
        replay = connect_replay(replay_settings(config, urls), self._folder.replay_start)
        stack.callback(replay.close)
        if gone := replay.shrink():
            log.warning("%d records above the capacity are evicted", gone)
        return replay

    def _start_servers(self, stack: contextlib.ExitStack) -> str:
        """Embedded servers; their URLs.

        In actors, because `ray job stop` ends all children of the driver at once, and the learner
        still has a checkpoint to write.
        """
        urls, hosts = [], []
        for name, folder in server_folders(self._config, self._folder.path).items():
            urls.append(new_socket_url())
            hosts.append(
                ray.remote(ReplayServerHost)
                .options(
                    name=name,
                    num_cpus=0,
                    max_restarts=-1,
                    max_task_retries=3,
                    scheduling_strategy=beside_driver(),
                )
                .remote(folder, urls[-1], append_only=self._config.replay.append_only)
            )
        ray.get([host.wait_until_running.remote(_SERVER_TIMEOUT_S) for host in hosts])
        stack.callback(_stop_servers, hosts)
        return " ".join(urls)

    def _curves(self) -> Curves:
        """Going on after the checkpoint; the first one is written after pre-training.

        What was evaluated is not evaluated again, whatever is trained once more.
        """
        if not self._resume:
            return Curves(self._folder.path)
        step = self._folder.checkpointed_cycle
        done = (EVALUATION_PHASE,) if step is None else ("pretrain", EVALUATION_PHASE)
        return Curves(self._folder.path, resume_step=-1 if step is None else step, done_phases=done)

    def _heed_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stopping.set())


def cluster_of_this_process() -> dict[str, str]:
    """Where the run's Ray cluster is found; no secret is among it."""
    context = ray.get_runtime_context()
    return {"address": context.gcs_address, "node_ip": ray.util.get_node_ip_address()}


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """The driver's node, for what a run cannot do without: it ends with the driver anyway.

    Ray places an actor that books nothing on any node, which may be the next one to be lost, and
    a soft wish for a node it does not always heed.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def fleet_options(part: Actors | Scoring | RewardFleet) -> dict[str, Any]:
    """Options of a fleet: over all nodes, so that a lost one takes as few as can be.

    Not of actors that share a GPU: on a node each, they would break into a GPU on each, and who
    books a whole one would find none. Ray's own way fills one node, and one GPU, before the next.
    """
    shares_gpu = part.num_gpus % 1 > 0
    return {
        "num_cpus": part.num_cpus,
        "num_gpus": part.num_gpus,
        **on_nodes(part.node_labels),
        **({} if shares_gpu else {"scheduling_strategy": "SPREAD"}),
    }


def reward_pool(parts: RunParts, reward: str, settings: RewardFleet) -> Fleet:
    """The fleet of a reward that has one of its own."""
    return Fleet(
        partial(reward_worker, parts, reward),
        name=fleet_name(reward),
        actor_options=fleet_options(settings),
        settings=FleetSettings(build_s=parts.config.build_s),
        host=RewardHost,
    )


def _stop_servers(hosts: list[Any]) -> None:
    """Ends embedded servers; one that does not answer is no reason for a run to fail."""
    try:
        ray.get([host.stop.remote() for host in hosts], timeout=_SERVER_TIMEOUT_S)
    except RayError as error:
        log.warning("an embedded server did not end in order: %s", error)


def _note(outcome: Outcome, ranks: Ranks, fleets: Fleets, replay: Replay) -> None:
    """Last counts and seconds, before their processes end; what does not answer is left out."""
    outcome.seconds = ranks.last.get("seconds", {})
    outcome.flops = ranks.last.get("flops", {})
    with contextlib.suppress(ReplayError):
        outcome.counters = replay.counters()
        outcome.failures = failure_reasons(replay, at_most=20)
    with contextlib.suppress(RayError):
        outcome.workers.update(fleets.stats())
