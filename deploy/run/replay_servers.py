"""The servers of a run's replay: those that its config names, or embedded ones in its folder."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from buffer.connection import connect, translated
from buffer.keys import key
from buffer.replay_settings import ReplaySettings
from buffer.urls import urls_in
from deploy.run.bookings import Room, bookings
from deploy.settings.run_config import RunConfig

_AT_THE_REPLAY = ("learner", "actors", "scoring")
"""Sections of the roles whose processes read or write it."""
_LOOK_EVERY_S = 0.1


def server_folders(config: RunConfig, folder: Path) -> dict[str, Path]:
    """Where each embedded server of a run keeps its data, by the name of the actor that hosts it.

    The first one's folder does not depend on how many there are: a run that is resumed with
    another number finds its data there, and is refused, rather than begun anew.
    """
    count = config.replay.shards
    if count == 1:
        return {"replay-server": folder / "redis"}
    return {
        f"replay-server-{number}": folder / (f"redis-{number}" if number else "redis")
        for number in range(count)
    }


def wrong_number_of_urls(config: RunConfig, environ: Mapping[str, str]) -> str | None:
    """What is wrong where `replay.shards` and the URLs that are given do not agree."""
    count, urls = config.replay.shards, config.redis_url(environ)
    if urls is None or count in (1, len(urls_in(urls))):
        return None
    given = "replay.redis" if config.replay.redis == urls else "REDIS_URL"
    return (
        f"replay.shards: is {count}, but {given} holds {len(urls_in(urls))} URLs: leave it out, as "
        "their number says it, or give as many, with spaces between them"
    )


def out_of_reach(
    config: RunConfig, environ: Mapping[str, str], rooms: Sequence[Room], here: str
) -> str | None:
    """Why a run cannot do with embedded servers on a cluster; None: it can, or uses others.

    They listen on sockets of the driver's machine, which nobody reaches from another one. Several
    nodes of one machine do.

    Args:
        rooms: of the living nodes.
        here: name of the driver's machine.
    """
    if config.redis_url(environ) is not None:
        return None
    for booking in bookings(config):
        if booking.section not in _AT_THE_REPLAY:
            continue
        far = sorted(room.host for room in rooms if room.host != here and booking.may_be_in(room))
        if far:
            return (
                f"{booking.role}: may be placed on {far[0]}, and an embedded Redis on {here} is "
                "not reached from there: set REDIS_URL in the environment of `ray start` on the "
                "head, with replay.redis auto or environment, or keep the run on one machine by "
                f"{booking.section}.node_labels"
            )
    return None


def replay_settings(config: RunConfig, urls: str) -> ReplaySettings:
    """Of a run on the servers at these URLs. Each of them keeps whole groups."""
    servers = len(urls_in(urls))
    groups = -(-config.replay.capacity_groups // servers) * servers
    return ReplaySettings(
        url=urls,
        run=config.name,
        capacity_records=groups * config.actors.group_size,
        capacity_bytes=config.capacity_bytes,
        max_attempts=config.replay.max_attempts,
        outage_s=config.replay.outage_s,
    )


def refuse_old_run(config: RunConfig, urls: str) -> None:
    """Makes sure that servers hold no run of this name, or records of one; changes nothing there.

    Raises:
        ValueError: they do.
        ReplayError: they do not answer.
    """
    held, owner = 0, None
    for url in urls_in(urls):
        with contextlib.closing(connect(url, timeout_s=5.0)) as client, translated(url):
            found: Any = client.hget(key(config.name, "counts"), "issued")
            held += int(found or 0)
            owner = owner or client.hget(key(config.name, "tickets"), "owner")
    if held:
        raise ValueError(
            f"there are {held:,} records of a run named {config.name!r} already: "
            + _instead_of_old_run(config.name)
        )
    if isinstance(owner, bytes):
        raise ValueError(
            f"a run named {config.name!r} has begun there already, last started by "
            f"{owner.decode('utf-8', 'replace')}: {_instead_of_old_run(config.name)}"
        )


def _instead_of_old_run(name: str) -> str:
    """What to do where servers hold a run of this name."""
    return (
        "continue that one with --resume, give this one another name, or remove its records by "
        f"python -m deploy.erase {name}"
    )


class ReplayServerHost:
    """The embedded server inside its actor, started again whenever it ends by itself.

    An actor that is restarted on the same URL brings the server back with all that it held.

    Args:
        url: where to listen, so that nobody has to be told of a restart.
    """

    def __init__(self, folder: Path, url: str, *, append_only: bool) -> None:
        import threading

        from buffer.embedded import EmbeddedServer

        self._server = EmbeddedServer(folder, append_only=append_only, url=url)
        self._stopping = threading.Event()
        self._running = threading.Event()
        self._error: Exception | None = None
        # The kernel ends the server with the thread that started it: this one, and no other.
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def wait_until_running(self, timeout_s: float) -> None:
        """Returns when the server serves; raises why it does not.

        Args:
            timeout_s: since it last told that it loads its data, which takes as long as it takes.
        """
        deadline = time.monotonic() + timeout_s
        while not self._running.wait(_LOOK_EVERY_S):
            if self._server.is_loading:
                deadline = time.monotonic() + timeout_s
            if time.monotonic() > deadline:
                raise TimeoutError(f"the embedded server did not start within {timeout_s:g} s")
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the server, its data written."""
        self._stopping.set()
        self._keeper.join()

    def _keep(self) -> None:
        from buffer.errors import ReplayError

        try:
            self._server.start()
        except ReplayError as error:
            self._error = error
        self._running.set()
        while self._error is None and not self._stopping.wait(0.1):
            try:
                self._server.revive()
            except ReplayError as error:
                logging.getLogger(__name__).warning("%s", error)
                self._stopping.wait(1.0)
        self._server.stop()
