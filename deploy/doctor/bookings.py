"""Whether what a config books fits on the nodes of a cluster; counts alone, no Ray."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from deploy.run_config import RunConfig

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Room:
    """What one node has, by Ray's count."""

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Booking:
    """Processes of one role, each of which books so much on a node with such labels."""

    role: str
    count: int
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def is_welcome(self, room: Room) -> bool:
        """Whether a node has the labels."""
        return all(room.labels.get(key) == value for key, value in self.labels.items())


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


def booking_findings(wanted: Sequence[Booking], rooms: Sequence[Room]) -> Iterator[str]:
    """Roles of which some process finds no place.

    The largest are placed first, each where least is left. That is not the order of Ray, and an
    arrangement that only another order finds is told as missing.
    """
    left = {room.name: [room.cpus, room.gpus] for room in rooms}
    for booking in sorted(wanted, key=lambda each: (each.gpus, each.cpus), reverse=True):
        welcome = [room.name for room in rooms if booking.is_welcome(room)]
        placed = 0
        for _ in range(booking.count):
            fitting = [name for name in welcome if _fits(booking, left[name])]
            if not fitting:
                break
            name = min(fitting, key=lambda each: (left[each][1], left[each][0]))
            left[name][0] -= booking.cpus
            left[name][1] -= booking.gpus
            placed += 1
        if placed < booking.count:
            yield _missing(booking, placed, [left[name] for name in welcome])


def _fits(booking: Booking, free: Sequence[float]) -> bool:
    return booking.cpus <= free[0] + _ROUNDING and booking.gpus <= free[1] + _ROUNDING


def _missing(booking: Booking, placed: int, free: Sequence[Sequence[float]]) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in booking.labels.items())
    having = f" with {labels}" if labels else ""
    cpus, gpus = (sum(each[i] for each in free) for i in (0, 1))
    section = booking.role.rpartition(".")[0] or booking.role
    return (
        f"{booking.role}: {placed} of {booking.count} find a place, each of which books "
        f"{booking.cpus:g} CPUs and {booking.gpus:g} GPUs on one node; {len(free)} nodes{having} "
        f"have {cpus:g} CPUs and {gpus:g} GPUs left: add nodes, lower {booking.role} or "
        f"{section}.num_gpus, or see that the nodes have those labels"
    )
