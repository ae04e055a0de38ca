"""Policy and surrogate steps of LaSRO through the DeepSpeed engine, in this process.

The method runs as in a training: scored groups come out of a replay, which is filled beforehand
with noise and random rewards, so that nobody is waited for.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from buffer.embedded import EmbeddedServer
from buffer.records import Record, Scores, record_id
from buffer.redis_replay import RedisReplay, ReplaySettings
from deploy.bench.timing import Row, spread
from deploy.settings.run_config import RunConfig, load_config
from learner.engine import join_ranks, leave_ranks
from learner.group_source import GroupSource
from learner.methods.alternation import Alternating
from learner.methods.lasro_build import build_lasro
from learner.methods.parts import Given
from learner.policy.components import PipelineFolder
from learner.seat import Seat
from learner.settings.lasro import Lasro

_PRESET = Path(__file__).resolve().parent.parent / "configs" / "shapes-lasro.yaml"


def steps(path: Path, teacher: Path, *, repeats: int, few: bool) -> list[Row]:
    """Rates of the steps of the preset that `make train` runs.

    Args:
        few: as few steps and groups as there can be, to try the benchmark itself.
    """
    config = _config(path, teacher, repeats=repeats, few=few)
    with EmbeddedServer() as server, alone():
        replay = RedisReplay.connect(
            ReplaySettings(url=server.url, run=config.name, capacity_records=10**6)
        )
        _fill(replay, config)
        method = _method(config, replay)
        method.prepare(lambda: None)
        rows = [_cycle(method, cycle) for cycle in range(repeats + 1)][1:]
        replay.close()
    method_settings = config.method
    assert isinstance(method_settings, Lasro)
    amounts = {
        f"policy step, {method_settings.policy_batch} prompts": method_settings.policy_steps,
        f"surrogate step, {method_settings.surrogate.batch_groups} groups of "
        f"{config.actors.group_size}": method_settings.surrogate_steps,
    }
    seconds_CR = np.array(rows).T
    return [
        Row(work, "fleetune", "steps/s", spread(count / seconds_R), None)
        for (work, count), seconds_R in zip(amounts.items(), seconds_CR, strict=True)
    ]


def _cycle(method: Alternating, cycle: int) -> tuple[float, float]:
    """Seconds of a cycle's policy steps and of its surrogate steps."""
    return (
        _spent(method, "policy", lambda: method.improve(cycle)),
        _spent(method, "surrogate", lambda: method.adapt(cycle, last=False)),
    )


def _spent(method: Alternating, phase: str, call: Callable[[], None]) -> float:
    before = method.journal.seconds.get(phase, 0.0)
    call()
    return method.journal.seconds[phase] - before


def _config(path: Path, teacher: Path, *, repeats: int, few: bool) -> RunConfig:
    overrides = [
        "name=bench",
        f"model.path={path.resolve()}",
        f"model.teacher={teacher.resolve()}",
        "method.pretrain.groups=64",
        "method.pretrain.max_steps=1",
        # A surrogate of noise is no guide, and is not to stop the policy's steps.
        "method.accuracy_brake=0",
        f"method.cycles={repeats + 2}",
    ]
    if few:
        overrides += [
            "method.pretrain.groups=8",
            "method.groups_per_cycle=4",
            "method.surrogate.batch_groups=4",
            "method.policy_batch=4",
            "method.anchor.batch=2",
            "method.policy_steps=1",
            "method.surrogate_steps=1",
        ]
    return load_config(_PRESET, overrides)


def _method(config: RunConfig, replay: RedisReplay) -> Alternating:
    assert isinstance(config.method, Lasro)
    source = GroupSource(
        replay=replay,
        rewards={"noise": 1.0},
        group_size=config.actors.group_size,
        max_open=1,
        capacity_groups=10**5,
        stall_s=60.0,
        stopping=threading.Event(),
    )
    prompts = [f"a {colour} circle above a blue square" for colour in ("red", "green")]
    return build_lasro(config.method, Given(config.model, config.learner, source, prompts, Seat(0)))


def _fill(replay: RedisReplay, config: RunConfig) -> None:
    """Every group that the run will ask for, scored."""
    method = config.method
    count = method.round_ends[-1]
    shape = PipelineFolder.of(config.model).latent_shape
    rng = np.random.default_rng(0)
    replay.admit(limit=count, policy_version=0)
    for _ in range(count):
        ticket = replay.lease_ticket("bench", lease_s=60.0)
        assert ticket is not None
        records = [
            _record(ticket.number, member, rng.standard_normal((2, *shape)).astype(np.float16))
            for member in range(config.actors.group_size)
        ]
        replay.put_group(ticket.number, records)
        claimed = replay.claim("bench", max_records=len(records), block_s=1.0, lease_s=60.0)
        replay.commit(
            [
                (record.record_id, Scores({"noise": tuple(rng.random(2).tolist())}))
                for record in claimed
            ]
        )


def _record(ticket: int, member: int, latents: np.ndarray) -> Record:
    return Record(
        record_id=record_id(ticket, member),
        ticket=ticket,
        member=member,
        prompt="a red circle left of a blue square",
        policy_version=0,
        seed=ticket,
        steps=(1, 2),
        scored=(0, 1),
        latents=tuple(latents),
    )


@contextmanager
def alone() -> Iterator[None]:
    """This process as the only rank.

    Raises:
        ValueError: DeepSpeed cannot begin on this machine.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        join_ranks(0, 1, "127.0.0.1", port, timeout_s=60.0)
    except (RuntimeError, OSError, ImportError) as error:
        raise ValueError(f"DeepSpeed cannot begin here, no step can be taken: {error}") from error
    try:
        yield
    finally:
        leave_ranks()
