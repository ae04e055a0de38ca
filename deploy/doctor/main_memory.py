"""Whether the main memory of a node holds the weights that a process builds there.

The least memory of all nodes that it may be placed on decides. Only what cannot work is told: what
processes of one node need together, what a process on CPUs computes, and what torch, Ray and its
object store take besides, is not compared.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deploy.doctor.gpu_memory import PLANS
from deploy.doctor.units import in_bytes
from deploy.run.bookings import Booking, Room

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Files of a container's limit: of cgroups of version 2, and of version 1."""


def main_memory_bytes(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Of this machine, or of this container where it has a limit."""
    told = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMITS:
        limit = (cgroups / name).read_text().strip() if (cgroups / name).is_file() else ""
        if limit.isdigit():
            told.append(int(limit))
    return min(told)


def main_memory_findings(
    filled: Mapping[str, int], wanted: Sequence[Booking], rooms: Sequence[Room]
) -> Iterator[str]:
    """Processes that need more main memory than a node has that they may be in.

    Args:
        filled: `host_bytes` of a size plan.
    """
    for booking in wanted:
        room = booking.least(rooms, lambda room: room.memory_bytes)
        if booking.section not in PLANS or room is None:
            continue
        process = PLANS[booking.section]
        needed = filled[process]
        if needed > room.memory_bytes:
            yield (
                f"one {process.replace('_', ' ')} fills {in_bytes(needed)} of main memory, and "
                f"{room.name} has {in_bytes(room.memory_bytes)}: give that machine or its "
                f"container more, or keep {booking.section} to larger ones by "
                f"{booking.section}.node_labels"
            )
