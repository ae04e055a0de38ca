"""One run's keys on a server, and asking it again while it is away.

The client sends a command again when its answer is lost, and during an outage this file does:
whatever is asked here must be idempotent, or its doubling harmless.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from buffer.connection import connect, translated
from buffer.errors import ReplayError, ReplayUnavailable
from buffer.keys import GROUP, NAMES, key
from buffer.replay_settings import MOST_QUARANTINED, PUT_SHARE
from buffer.urls import masked

log = logging.getLogger(__name__)
T = TypeVar("T")

_LUA = Path(__file__).parent / "lua"


class RedisLink:
    """A client, the keys of a run and the scripts that change them.

    Args:
        timeout_s: longest wait for one answer of the server.
        outage_s: a server that does not answer is asked again for so long.
        retries: times that the client itself sends a command again before that.
    """

    def __init__(
        self, url: str, run: str, *, timeout_s: float, outage_s: float, retries: int = 3
    ) -> None:
        self.client = connect(url, timeout_s=timeout_s, retries=retries)
        self._url = url
        self._run = run
        self._timeout_s = timeout_s
        self._outage_s = outage_s
        self._keys = [key(run, name) for name in NAMES]
        self._record_prefix = key(run, "record:")
        self._scripts = {
            name: self.client.register_script(text) for name, text in _script_texts().items()
        }

    def __repr__(self) -> str:
        return f"{masked(self._url)}, run={self._run!r}"

    def key(self, name: str) -> str:
        """One of `buffer.keys.NAMES` of this run."""
        return self._keys[NAMES.index(name)]

    def record_key(self, record_id: str) -> str:
        """Where a record's payload is."""
        return self._record_prefix + record_id

    def run(self, script: str, *args: str | int | bytes) -> Any:
        """What a script of `buffer/lua` answers."""
        words = [self._record_prefix, *args]
        return self.ask(lambda: self._scripts[script](keys=self._keys, args=words))

    def queue(self, pipe: Any, script: str, *args: str | int | bytes) -> None:
        """Puts what `run` would ask into a pipeline of `ask_each`."""
        self._scripts[script](keys=self._keys, args=[self._record_prefix, *args], client=pipe)

    def ask(self, question: Callable[[], T]) -> T:
        """What the server answers, who is asked again during an outage.

        Raises:
            ReplayError: of one of its kinds; `ReplayUnavailable` when the outage lasts longer.
        """
        begun, attempt = time.monotonic(), 0
        while True:
            try:
                with translated(self._url):
                    return question()
            except ReplayUnavailable as error:
                # The address may lead to another server by now; who gives up here asks again later.
                self.client.connection_pool.disconnect(inuse_connections=False)
                left_s = begun + self._outage_s - time.monotonic()
                if left_s <= 0:
                    raise
                attempt += 1
                log.warning("the replay does not answer; %.0f s are left: %s", left_s, error)
                time.sleep(min(left_s, 0.1 * 2 ** min(attempt, 5)))

    def ask_each(self, fill: Callable[[Any], object]) -> list[Any]:
        """Every answer to the commands that `fill` puts into a pipeline, in one round trip.

        Where a key is of another type, what the server says of it: one odd key must not hide the
        answers for all others.
        """

        def question() -> list[Any]:
            pipe = self.client.pipeline(transaction=False)
            fill(pipe)
            answers = pipe.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                    raise answer
            return answers

        return self.ask(question)

    def block_ms(self, block_s: float) -> int | None:
        """A wait that the socket's timeout does not cut; None: do not wait (0 waits for ever)."""
        return milliseconds(min(block_s, self._timeout_s / 2)) if block_s > 0 else None

    def drop(self, names: Sequence[str]) -> None:
        """Deletes keys that would expire anyway; a server that is away is not waited for."""
        with contextlib.suppress(ReplayError), translated(self._url):
            self.client.unlink(*names)

    def erase(self, names_in_one: int) -> int:
        """Deletes every key of the run, so many in one command; returns how many there were."""

        def question() -> int:
            found = list(self.client.scan_iter(key(self._run, "*"), count=names_in_one))
            for start in range(0, len(found), names_in_one):
                self.client.unlink(*found[start : start + names_in_one])
            return len(found)

        return self.ask(question)

    def close(self) -> None:
        """Drop the connections; the next question opens them again."""
        self.client.close()


def milliseconds(seconds: float) -> int:
    """Of a lease or a wait, at least 1."""
    if not seconds > 0:
        raise ValueError(f"a lease or a wait must be longer than 0 s; got {seconds}")
    return max(1, round(seconds * 1000))


def stream_entries(answer: Any) -> Sequence[tuple[bytes, dict[bytes, bytes]]]:
    """The entries of an XREAD of one stream; the server answers nothing when there are none."""
    return answer[0][1] if answer else []


@functools.cache
def _script_texts() -> dict[str, str]:
    """Name -> script with the constants and the prelude before it."""
    prelude = _constants() + (_LUA / "prelude.lua").read_text("utf-8")
    names = sorted(path.stem for path in _LUA.glob("*.lua") if path.stem != "prelude")
    return {name: prelude + (_LUA / f"{name}.lua").read_text("utf-8") for name in names}


def _constants() -> str:
    """What scripts share with this program, in Lua."""
    return (
        f"local GROUP, MOST_QUARANTINED, PUT_SHARE = '{GROUP}', {MOST_QUARANTINED}, {PUT_SHARE}\n"
    )
