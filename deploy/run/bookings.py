"""Whether what a config books fits on the nodes of a cluster; counts alone, no Ray."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deploy.settings.run_config import RunConfig

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Room:
    """What one node has, by Ray's count.

    Args:
        host: name of its machine, which several nodes may have in common.
        gpu_bytes: memory of its smallest GPU; 0: not known.
        memory_bytes: main memory; 0: not known.
    """

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    gpu_bytes: int = 0
    memory_bytes: int = 0

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Room":
        """Of a living node, as `ray.nodes()` tells of it."""
        resources = node["Resources"]
        return cls(
            node["NodeName"],
            resources.get("CPU", 0.0),
            resources.get("GPU", 0.0),
            node.get("Labels", {}),
            node["NodeManagerHostname"],
        )


@dataclass(frozen=True)
class Booking:
    """Processes of one role, each of which books so much on a node with such labels."""

    role: str
    count: int
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def section(self) -> str:
        """Of the config, that says what each books."""
        return self.role.rpartition(".")[0] or self.role

    def is_welcome(self, room: Room) -> bool:
        """Whether a node has the labels."""
        return all(room.labels.get(key) == value for key, value in self.labels.items())

    def least(self, rooms: Sequence[Room], size: Callable[[Room], int]) -> Room | None:
        """Of the nodes that may hold one and whose size is known, that with the least."""
        told = [room for room in rooms if size(room) and self.may_be_in(room)]
        return min(told, key=size, default=None)

    def may_be_in(self, room: Room) -> bool:
        """Whether a node that nothing else is on may hold one of the processes."""
        return self.is_welcome(room) and _Left.of(room).gpus_for(self) is not None


def bookings(config: RunConfig) -> list[Booking]:
    """Of all roles of a run, with the numbers that it starts with."""
    parts = (
        ("learner.ranks", config.learner.ranks, config.learner),
        ("actors.count", config.actors.count, config.actors),
        ("scoring.servers", config.scoring.servers, config.scoring),
        *(
            (f"rewards.{name}.fleet.servers", reward.fleet.servers, reward.fleet)
            for name, reward in config.rewards.items()
            if reward.fleet
        ),
        ("evaluation", 1, config.evaluation),
    )
    return [
        Booking(name, count, part.num_cpus, part.num_gpus, part.node_labels)
        for name, count, part in parts
    ]


@dataclass
class _Left:
    """What is free of a room: its CPUs, and the share of each of its GPUs."""

    cpus: float
    gpus: list[float]

    @classmethod
    def of(cls, room: Room) -> "_Left":
        return cls(room.cpus, [1.0] * int(room.gpus))

    def gpus_for(self, booking: Booking) -> list[int] | None:
        """Which GPUs a process would take: a part of one, or whole ones; None: it does not fit."""
        if booking.cpus > self.cpus + _ROUNDING:
            return None
        share = min(booking.gpus, 1.0)
        fitting = [i for i, free in enumerate(self.gpus) if share <= free + _ROUNDING]
        fitting.sort(key=lambda i: self.gpus[i])
        count = math.ceil(booking.gpus)
        return fitting[:count] if len(fitting) >= count else None

    def take(self, booking: Booking, gpus: Sequence[int]) -> None:
        self.cpus -= booking.cpus
        for i in gpus:
            self.gpus[i] -= min(booking.gpus, 1.0)


def booking_findings(wanted: Sequence[Booking], rooms: Sequence[Room]) -> Iterator[str]:
    """Roles of which some process finds no place.

    The largest are placed first, each where least is left. That is not the order of Ray, and an
    arrangement that only another order finds is told as missing. As with Ray, a process that books
    a part of a GPU has it of one.
    """
    left = {room.name: _Left.of(room) for room in rooms}
    for booking in sorted(wanted, key=lambda each: (each.gpus, each.cpus), reverse=True):
        welcome = [left[room.name] for room in rooms if booking.is_welcome(room)]
        placed = 0
        for _ in range(booking.count):
            fitting = [
                (sum(room.gpus), room.cpus, number, gpus)
                for number, room in enumerate(welcome)
                if (gpus := room.gpus_for(booking)) is not None
            ]
            if not fitting:
                break
            _, _, number, gpus = min(fitting)
            welcome[number].take(booking, gpus)
            placed += 1
        if placed < booking.count:
            yield _missing(booking, placed, welcome)


def _missing(booking: Booking, placed: int, free: Sequence[_Left]) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in booking.labels.items())
    having = f" with {labels}" if labels else ""
    cpus, gpus = sum(each.cpus for each in free), sum(sum(each.gpus) for each in free)
    nodes = f"1 node{having} has" if len(free) == 1 else f"{len(free)} nodes{having} have"
    return (
        f"{booking.role}: {placed} of {booking.count} find a place, each of which books "
        f"{booking.cpus:g} CPUs and {booking.gpus:g} GPUs on one node; {nodes} "
        f"{cpus:g} CPUs and {gpus:g} GPUs left: add nodes, lower {booking.role} or "
        f"{booking.section}.num_gpus, or see that the nodes have those labels"
    )
