"""What overlapping is worth: a run whose every role only waits, as long as a GPU would take.

Trainer, samplers, reward servers, replay and admission are those of a run; only networks are left
out. A cycle samples its groups and takes its steps, with `pace: free`: in `turns` one after the
other (`replay.max_staleness` 0), in `free` at the same time (1).
"""

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actors.worker import SamplerWorker
from buffer.embedded import EmbeddedServer
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings
from deploy.bench.scale_samplers import MEMBERS, at_work, new_sampler, new_server
from deploy.bench.timing import Row, spread
from learner.group_source import GroupSource
from learner.groups import ScoredGroups
from learner.journal import Journal
from learner.policy.board import PolicyBoard, Weights
from learner.trainer import Trainer
from reward_servers.server import RewardServer

SAMPLERS = 8
GROUPS = 16
GROUP_S = 1.0
STEPS_S = 3.0
"""Of a cycle's policy and surrogate steps: a little more than its samples take."""
STALENESS = {"turns": 0, "free": 1}


def pace(*, repeats: int, few: bool) -> list[Row]:
    """Cycles a minute, and the share of its time that the learner waits, either way.

    Args:
        few: as short as there can be, to try the benchmark itself.
    """
    cycles, unit_s = (2, 0.05) if few else (12, 1.0)
    tries: list[dict[str, tuple[float, float]]] = []
    for repeat in range(repeats):
        order = list(STALENESS) if repeat % 2 == 0 else list(STALENESS)[::-1]
        tries.append({way: _run(STALENESS[way], cycles=cycles, unit_s=unit_s) for way in order})
    rates = [{way: 60 * cycles * unit_s / each[way][0] for way in each} for each in tries]
    return [
        Row(
            "cycles of roles that wait",
            way,
            "cycles/min",
            spread([each[way] for each in rates]),
            None if way == "turns" else spread([each[way] / each["turns"] for each in rates]),
        )
        for way in ("free", "turns")
    ] + [
        Row("learner without samples", way, "%", spread([each[way][1] for each in tries]), None)
        for way in ("free", "turns")
    ]


def _run(staleness: int, *, cycles: int, unit_s: float) -> tuple[float, float]:
    """Seconds of the cycles, and how many per cent of them the learner waited."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleetune-pace-")))
        server = stack.enter_context(EmbeddedServer(folder / "redis"))
        settings = ReplaySettings(url=server.url, run="pace", capacity_records=10**6)
        replay = RedisReplay.connect(settings)
        stack.callback(replay.close)
        board, stopping = PolicyBoard(), threading.Event()
        workers: list[SamplerWorker | RewardServer] = [new_server(replay, 0)]
        workers += [
            new_sampler(replay, i, SAMPLERS, GROUP_S * unit_s, _Shelf(board))
            for i in range(SAMPLERS)
        ]
        stack.enter_context(at_work(workers))
        ends = tuple(GROUPS * (1 + cycle) for cycle in range(cycles + 1))
        source = GroupSource(
            replay=replay,
            rewards={"reward": 1.0},
            group_size=MEMBERS,
            max_open=4 * GROUPS,
            max_staleness=staleness,
            capacity_groups=10**6,
            stall_s=60.0,
            stopping=stopping,
        )
        groups = ScoredGroups(source, steps=[0], admits=True, round_ends=ends)
        method = _WaitingMethod(groups, ends, STEPS_S * unit_s)
        Trainer(
            method,
            lambda version, weights: board.publish(version, [weights]),
            folder=folder,
            rank=0,
            resume=False,
            every=cycles,
            keep=1,
            stopping=stopping,
        ).run()
        return method.cycles_s, 100 * method.waited_s / method.cycles_s


class _Shelf:
    """A board in this process, as a sampler asks for weights."""

    def __init__(self, board: PolicyBoard) -> None:
        self._board = board

    def latest(self) -> tuple[int, int]:
        return self._board.latest()

    def fetch(self, at_least: int, /) -> tuple[int, Weights]:
        version, (weights,) = self._board.weights(at_least)
        return version, weights


class _WaitingMethod:
    """The schedule of `learner.methods.alternation`, with steps that only wait.

    Args:
        ends: the first ticket after the preparation, and after each cycle.
        steps_s: of a cycle.
    """

    def __init__(self, groups: ScoredGroups, ends: tuple[int, ...], steps_s: float) -> None:
        self.cycles = len(ends) - 1
        self.journal = Journal()
        self.prepared = False
        self._groups = groups
        self._ends = ends
        self._steps_s = steps_s
        self._begun = self._waited_before_s = 0.0
        self.cycles_s = self.waited_s = 0.0

    def prepare(self, breathe: Callable[[], None]) -> None:
        self._groups.collect(range(self._ends[0]), 0)
        self.prepared = True
        self._begun, self._waited_before_s = time.monotonic(), self._all_waits_s()

    def improve(self, cycle: int) -> None:
        time.sleep(self._steps_s / 2)

    def adapt(self, cycle: int, *, last: bool) -> None:
        tickets = range(*self._ends[cycle : cycle + 2])
        self._groups.collect(tickets, cycle + 1, self.journal.add_seconds)
        time.sleep(self._steps_s / 2)
        self.cycles_s = time.monotonic() - self._begun
        self.waited_s = self._all_waits_s() - self._waited_before_s

    def _all_waits_s(self) -> float:
        seconds = self.journal.seconds.items()
        return sum(spent for phase, spent in seconds if phase.startswith("waiting_"))

    def weights(self) -> dict[str, Any]:
        return {}

    final_weights = weights

    def save(self, folder: Path) -> None:
        """Nothing."""

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        return {}
