"""`python -m deploy.drills.faults`: kill a real run's processes, and see that nothing is lost.

    --kills N     how many processes are killed (default 50)
    --seed S      of the schedule: which, and when (default 0)
    --shards N    Redis servers of each run (default 1)
    --ranks N     processes of the learner of each run (default 1)
    --keep DIR    leave both runs there

Two runs of a tiny untrained model in lockstep, as Ray jobs on a head of their own: one undisturbed,
one whose samplers, reward servers, learner, controller, Redis server and the actor that keeps it
are ended by SIGKILL, one after the other, each after the run has moved on from the last. A killed
controller is submitted again as it was. The last line of stdout is JSON:

    kills        by kind of process
    issued       records of the disturbed run that samplers put; committed, quarantined, open: what
                 became of them
    lost         records that its tickets stand for, and that ended nowhere
    duplicated   records that were committed more than once
    same_policy  both runs end with the same adapter, bit by bit

Exit status 0 if nothing was lost or duplicated and the policies are the same, else 1.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import load_file

from buffer.records import START, IndexEntry
from deploy.local_head import HeadError, LocalHead
from deploy.quarantine import opened

log = logging.getLogger("deploy.drills.faults")
_ROOT = Path(__file__).resolve().parents[2]
_SMOKE = _ROOT / "deploy" / "configs" / "smoke.yaml"
_SAMPLERS, _REWARDS = 2, 2
_PRETRAIN_GROUPS, _CYCLE_GROUPS, _MEMBERS = 8, 4, 3
_READY_S = 180.0
_PROGRESS_S = 300.0
_END_S = 1800.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
KINDS = {
    "sampler": 5,
    "reward": 5,
    "learner": 4,
    "redis": 3,
    "replay-server": 1,
    "policy-board": 1,
    "evaluator": 1,
    "driver": 3,
}
"""What is killed, and how often in proportion: actors by the beginning of their name, the embedded
server of Redis' kind, and the job's driver, which is the controller."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.drills.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with contextlib.ExitStack() as stack:
        folder = options.keep
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="fleetune-faults-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        figures = drill(
            folder.resolve(),
            kills=options.kills,
            seed=options.seed,
            shards=options.shards,
            ranks=options.ranks,
        )
    sys.stdout.write(json.dumps(figures) + "\n")
    is_right = not figures["lost"] and not figures["duplicated"] and figures["same_policy"]
    return 0 if is_right else 1


def drill(
    folder: Path, *, kills: int, seed: int, shards: int = 1, ranks: int = 1
) -> dict[str, Any]:
    """Both runs and what their comparison says."""
    from deploy.drills.tiny import save_tiny_pipelines

    folder.mkdir(parents=True, exist_ok=True)
    pipelines = save_tiny_pipelines(folder / "pipelines")
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environ["OMP_NUM_THREADS"] = "1"
    cycles = 6 + 3 * kills
    begun = time.monotonic()
    with LocalHead(num_cpus=4, environ=environ) as head:
        if not head.wait_ready(timeout_s=_READY_S, should_stop=lambda: False):
            raise HeadError("the head did not start")
        straight = Run(head, folder, "straight", pipelines, cycles, shards, ranks)
        straight.submit()
        straight.wait(_END_S)
        straight_s = time.monotonic() - begun
        disturbed = Run(head, folder, "disturbed", pipelines, cycles, shards, ranks)
        killed = disturb(disturbed, kills=kills, rng=random.Random(seed))
    return {
        **figures_of(disturbed, cycles),
        "kills": sum(killed.values()),
        "killed": dict(killed),
        "submitted": disturbed.submissions,
        "same_policy": are_same(weights_in(straight.path), weights_in(disturbed.path)),
        "straight_s": round(straight_s, 1),
        "disturbed_s": round(time.monotonic() - begun - straight_s, 1),
    }


@dataclass
class Run:
    """One run of the smoke preset in lockstep, as jobs on a head that is there."""

    head: LocalHead
    folder: Path
    name: str
    pipelines: Path
    cycles: int
    shards: int = 1
    ranks: int = 1
    submissions: int = 0
    job: str = ""
    clients: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def submit(self) -> None:
        """Begins the run, or goes on with it: the command is the same."""
        self.submissions += 1
        self.job = f"{self.name}-{self.submissions}"
        launch = [sys.executable, "-m", "deploy.launch", "--or-resume", str(_SMOKE)]
        settings = {
            "name": self.name,
            "pace": "lockstep",
            "seed": 1,
            "model.path": self.pipelines / "lcm",
            "model.teacher": self.pipelines / "base",
            "actors.count": _SAMPLERS,
            "actors.groups_per_batch": 1,
            "actors.group_size": _MEMBERS,
            "actors.lease_s": 3,
            "scoring.servers": _REWARDS,
            "replay.shards": self.shards,
            "learner.ranks": self.ranks,
            "scoring.lease_s": 3,
            # A record may be in the hands of every process that is killed.
            "replay.max_attempts": 1000,
            "method.pretrain.groups": _PRETRAIN_GROUPS,
            "method.groups_per_cycle": _CYCLE_GROUPS,
            "method.cycles": self.cycles,
            "limits.stall_s": 400,
        }
        command = self.head.submit_command(
            [*launch, *(f"{key}={value}" for key, value in settings.items())],
            job=self.job,
            folder=_ROOT,
            env_vars={"FLEETUNE_RUNS": str(self.folder / "runs"), "OMP_NUM_THREADS": "1"},
        )
        with (self.folder / f"{self.job}.log").open("wb") as output:
            done = subprocess.run(
                [*command[: command.index("--")], "--no-wait", *command[command.index("--") :]],
                env=self.head.client_environ(),
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_READY_S,
            )
        if done.returncode:
            raise HeadError(f"{self.job} was not submitted; see {self.folder / self.job}.log")

    def status(self) -> str:
        """Ray's word for how the job is."""
        return str(self.head.request("GET", f"/api/jobs/{self.job}")["status"])

    def wait(self, timeout_s: float) -> None:
        """Until the job has succeeded; raises HeadError otherwise."""
        wait_for(lambda: self.status() in _ENDED, timeout_s, self.name)
        if self.status() != "SUCCEEDED":
            raise HeadError(f"{self.job} ended as {self.status()}:\n{self.output()[-3000:]}")

    def output(self) -> str:
        """The job's log."""
        return str(self.head.request("GET", f"/api/jobs/{self.job}/logs").get("logs", ""))

    @property
    def path(self) -> Path:
        return self.folder / "runs" / self.name

    def checkpointed(self) -> int:
        """Cycles behind the newest checkpoint; -1 before the first."""
        folder = self.path / "checkpoints"
        return max((int(p.name[:8]) for p in folder.glob("*") if p.name[:8].isdigit()), default=-1)

    def victims(self, kind: str) -> list[psutil.Process]:
        """Living processes of one kind."""
        if kind == "driver":
            return [p for p in _descendants(self.head) if _is_driver(p, self.name)]
        if kind == "redis":
            keepers = self._actors("replay-server")
            return [child for keeper in keepers for child in keeper.children()]
        return self._actors(kind)

    def _actors(self, prefix: str) -> list[psutil.Process]:
        answer = self.head.request("GET", "/api/v0/actors?limit=1000&detail=true")
        living = [
            int(actor["pid"])
            for actor in answer["data"]["result"]["result"]
            if actor["state"] == "ALIVE"
            and actor["ray_namespace"] == self.name
            and (actor["name"] or "").startswith(prefix)
        ]
        with contextlib.suppress(psutil.NoSuchProcess):
            return [psutil.Process(pid) for pid in living if pid]
        return []


def disturb(run: Run, *, kills: int, rng: random.Random) -> Counter[str]:
    """Submits a run and kills processes of it until there were enough; waits for its end."""
    killed: Counter[str] = Counter()
    run.submit()
    moved_on = -2
    while sum(killed.values()) < kills:
        kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        # The run must have gone on since the last kill, or the same step is only begun again.
        wait_for(
            lambda seen=moved_on: run.checkpointed() > seen or run.status() in _ENDED,
            _PROGRESS_S,
            run.output,
        )
        time.sleep(rng.uniform(0.0, 2.0))
        found = wait_for(
            lambda kind=kind: run.victims(kind) or run.status() in _ENDED, _PROGRESS_S, run.output
        )
        if run.status() in _ENDED:
            break
        victim = rng.choice(sorted(found, key=lambda process: process.pid))
        moved_on = run.checkpointed()
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)
            killed[kind] += 1
            log.info("kill %d: %s, at cycle %d", sum(killed.values()), kind, moved_on)
        if kind == "driver":
            wait_for(lambda: run.status() == "FAILED", _PROGRESS_S, run.output)
            run.submit()
    run.wait(_END_S)
    return killed


def weights_in(folder: Path) -> dict[str, np.ndarray]:
    """The adapter that the run in a folder ended with."""
    [file] = (folder / "adapter").glob("*.safetensors")
    return load_file(file)


def are_same(weights: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Bit by bit."""
    return weights.keys() == others.keys() and all(
        array.tobytes() == others[name].tobytes() for name, array in weights.items()
    )


def figures_of(run: Run, cycles: int) -> dict[str, int]:
    """What became of every record that a run's tickets stand for."""
    tickets = _PRETRAIN_GROUPS + cycles * _CYCLE_GROUPS
    with opened(run.path, {}) as replay:
        counters = replay.counters()
        committed: Counter[str] = Counter()
        position = START
        while entries := replay.tail(position, max_entries=1000):
            position = entries[-1].position
            committed.update(e.record_id for e in entries if isinstance(e, IndexEntry))
    ended = len(committed) + counters.failed + counters.pending
    return {
        "issued": counters.issued_records,
        "committed": counters.committed,
        "quarantined": counters.failed,
        "open": counters.pending,
        "lost": tickets * _MEMBERS - ended,
        "duplicated": counters.committed - len(committed) + _twice(committed),
    }


def _twice(committed: Counter[str]) -> int:
    return sum(count - 1 for count in committed.values())


def wait_for(condition: Callable[[], Any], timeout_s: float, told: str | Callable[[], str]) -> Any:
    """What the condition returns as soon as it is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(HeadError):
            if found := condition():
                return found
        if time.monotonic() > deadline:
            text = told if isinstance(told, str) else told()[-3000:]
            raise HeadError(f"nothing happened for {timeout_s:.0f} s: {text}")
        time.sleep(0.3)


def _descendants(head: LocalHead) -> Iterator[psutil.Process]:
    yield from psutil.Process(head.pid).children(recursive=True)


def _is_driver(process: psutil.Process, run: str) -> bool:
    with contextlib.suppress(psutil.Error):
        command = process.cmdline()
        return "deploy.launch" in command and f"name={run}" in command
    return False


if __name__ == "__main__":
    sys.exit(main())
