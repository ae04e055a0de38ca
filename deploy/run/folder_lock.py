"""The lock of a run's folder, which one driver has at a time, on whatever machine it is.

A process that ends lets go of it. On NFS one whose whole machine is lost does not: the server keeps
the lock until that client's lease is over. So who holds it is written into the file, a lock of a
process that is seen to live is refused at once, and any other is waited for. A file system without
locks keeps nobody out.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

log = logging.getLogger(__name__)
# An NFSv4 server's lease, 90 s unless it is set to another, and a margin.
LEASE_S = 120.0
_TRY_EVERY_S = 0.5
_SAME_START_S = 1.0


@dataclass(frozen=True)
class Holder:
    """A process that has the lock.

    Args:
        began: when it did, in seconds since the epoch: a pod that takes the place of a lost one may
            have its name, and a process there its number.
    """

    host: str
    pid: int
    began: float

    @classmethod
    def this_process(cls) -> Self:
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def is_seen_alive(self) -> bool:
        """False: it has ended, or is on another machine."""
        if self.host != socket.gethostname():
            return False
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.began) < _SAME_START_S
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def hold(path: Path) -> int:
    """Locks a file for as long as the descriptor that it returns is open.

    Raises:
        ValueError: another process has it, and keeps it.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        _wait(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)
    os.fsync(descriptor)
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a process has the lock of a file; not noticed on a file system without locks."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(descriptor, path)
    finally:
        os.close(descriptor)


def _wait(descriptor: int, path: Path) -> None:
    """Until the lock is had, for as long as a lost machine's may outlive it."""
    deadline, told = time.monotonic() + LEASE_S, False
    while not _try(descriptor, path):
        holder = _holder(path)
        alive = holder is not None and holder.is_seen_alive()
        if alive or time.monotonic() > deadline:
            raise ValueError(
                f"another driver is at work on the run in {path.parent}, "
                f"{holder or 'which has not told its name'}: stop it first, or give this one "
                f"another name; if its machine is gone, remove {path}"
            )
        if not told:
            log.info(
                "waiting up to %.0f s for %s, which has the run in %s: the lock of a machine that "
                "is gone may outlive it so long",
                LEASE_S,
                holder or "another driver",
                path.parent,
            )
            told = True
        time.sleep(_TRY_EVERY_S)


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked: %s", path.parent, error)
    return True


def _holder(path: Path) -> Holder | None:
    """Who has the lock; None: it is just being written, or nobody has told."""
    try:
        told = json.loads(path.read_text())
        return Holder(str(told["host"]), int(told["pid"]), float(told["began"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
