"""Memory that the processes of a run take on the driver's node."""

from collections.abc import Iterator

import psutil


def resident_mb() -> float:
    """Resident memory of this process and of the Ray node it is on, in MB, as a plain sum.

    Pages that processes share are counted in each of them, so it errs on the high side.
    """
    own = psutil.Process()
    family = {own.pid: own}
    for top in _node_processes(own):
        family.update({child.pid: child for child in (top, *top.children(recursive=True))})
    return sum(_resident_bytes(process) for process in family.values()) / 2**20


def _node_processes(own: psutil.Process) -> Iterator[psutil.Process]:
    """The raylet above this process, or the `ray start --block` above that; none outside Ray."""
    for process in own.parents():
        if process.name().startswith("raylet"):
            starter = process.parent()
            yield starter if starter and "--block" in starter.cmdline() else process


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it has ended meanwhile
        return 0
