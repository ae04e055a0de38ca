"""A Ray head of its own for one run on this machine, gone without a trace when it closes.

    with LocalHead(num_cpus=None, environ=os.environ) as head:
        head.wait_ready(timeout_s=120, should_stop=stop.is_set)
        head.submit_command(...)

Several heads live side by side: every port is free when it is chosen, the node has its own
loopback address, and the session's files lie in a folder of their own. Only processes that this
head started are ended, by their pid: `ray stop` would end every Ray of the machine. Should this
process be killed, the kernel tells the head, which takes its children with it.
"""

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

log = logging.getLogger(__name__)

# Ray puts sockets below this folder, and a Unix socket's path may have 107 bytes.
_SHORT_TMP = Path("/tmp")
_PREFIX = "ft-"
_LOCK = "runner.lock"
_PR_SET_PDEATHSIG = 1
_STOP_TIMEOUT_S = 20.0
_PORTS = (15_000, 32_768)
# How long `ray job stop` lets a job end by itself; Ray's default is 3 s, too short to checkpoint.
JOB_STOP_WAIT_S = 90


class HeadError(RuntimeError):
    """The head did not start or does not answer; `status` is HTTP's, where it answered so."""

    status: int | None = None


class LocalHead:
    """A `ray start --head` child process and the HTTP address of its dashboard.

    Args:
        token: without it nobody can use the head, not even another user of this machine who finds
            its port; None: no token is asked for.
    """

    def __init__(
        self, *, num_cpus: int | None, environ: Mapping[str, str], token: str | None = None
    ) -> None:
        self._num_cpus = num_cpus
        self._environ = _head_environ(environ, token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._lock: int | None = None
        self._dashboard_port = 0
        self._port = 0
        self._node_ip = ""
        # Requests stay on the loopback, whatever proxy the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Self:
        _sweep(_short_tmp())
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_short_tmp()))
        self._lock = _claimed(self._folder)
        try:
            self._process = self._start(self._folder)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Address of dashboard and job API."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    @property
    def address(self) -> str:
        """Where nodes and drivers of this machine join: host:port."""
        return f"{self._node_ip}:{self._port}"

    @property
    def node_ip(self) -> str:
        """Its loopback address, by which Ray tells nodes of one machine apart."""
        return self._node_ip

    @property
    def pid(self) -> int:
        """Of the process that all others of the head descend from."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """It ends with the first of its parts."""
        return self._process is not None and self._process.poll() is None

    @property
    def logs(self) -> Path:
        """Folder of Ray's logs, while the head lives."""
        assert self._folder is not None
        return self._folder / "session_latest" / "logs"

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        ports = iter(free_ports(7))
        self._dashboard_port, self._port = next(ports), next(ports)
        self._node_ip = loopback_address()
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--disable-usage-stats",
            f"--temp-dir={folder}",
            f"--node-ip-address={self._node_ip}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard_port}",
            f"--port={self._port}",
            f"--dashboard-agent-listen-port={next(ports)}",
            f"--dashboard-agent-grpc-port={next(ports)}",
            f"--runtime-env-agent-port={next(ports)}",
            f"--metrics-export-port={next(ports)}",
            f"--ray-client-server-port={next(ports)}",
            # The system chooses: two heads would share Ray's fixed default range.
            "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        if self._num_cpus is not None:
            command.append(f"--num-cpus={self._num_cpus}")
        with (folder / "head.log").open("wb") as output:
            return start_child(command, environ=self._environ, stdout=output)

    def wait_ready(self, *, timeout_s: float, should_stop: Callable[[], bool]) -> bool:
        """Waits until jobs can be submitted; False: `should_stop` said so first.

        A head that ends while it starts is started once more: Ray gives its own processes half a
        minute, which a busy machine may not keep.
        """
        deadline, may_fail = time.monotonic() + timeout_s, True
        while not should_stop():
            if not self.is_alive:
                if not may_fail:
                    raise HeadError(f"Ray's head ended while it started:\n{self.tail()}")
                log.warning("Ray's head ended while it started; once more")
                self.close()
                self.__enter__()
                deadline, may_fail = time.monotonic() + timeout_s, False
            if self._is_ready():
                return True
            if time.monotonic() > deadline:
                raise HeadError(
                    f"Ray's head did not answer at {self.url} within {timeout_s:g} s:\n"
                    f"{self.tail()}"
                )
            time.sleep(0.2)
        return False

    def _is_ready(self) -> bool:
        """The dashboard answers and its node is there to run a job on."""
        try:
            self.request("GET", "/api/version")
            nodes = self.request("GET", "/api/v0/nodes?limit=1")
        except HeadError:
            return False
        return bool(nodes.get("data", {}).get("result", {}).get("result"))

    def request(self, method: str, path: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """A call of the dashboard's HTTP API; raises HeadError."""
        request = urllib.request.Request(self.url + path, method=method, headers=self._headers)
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                return json.loads(response.read())
        except (OSError, ValueError) as error:
            failed = HeadError(f"{method} {self.url}{path}: {error}")
            if isinstance(error, urllib.error.HTTPError):
                failed.status = error.code
                error.close()
            raise failed from None

    def submit_command(
        self,
        entrypoint: Sequence[str],
        *,
        job: str,
        folder: Path,
        env_vars: Mapping[str, str],
        metadata: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The `ray job submit` command line that runs an entrypoint in a copy of `folder`.

        Args:
            metadata: what the dashboard tells of the job.
        """
        return [
            sys.executable, "-m", "ray.scripts.scripts", "job", "submit",
            f"--address={self.url}",
            f"--submission-id={job}",
            f"--working-dir={folder}",
            f"--runtime-env-json={json.dumps({'env_vars': dict(env_vars)})}",
            f"--metadata-json={json.dumps(dict(metadata or {}))}",
            "--log-color=false",
            "--", *entrypoint,
        ]  # fmt: skip

    def client_environ(self) -> dict[str, str]:
        """Environment of a command that talks to this head."""
        return {**self._environ, "PYTHONUNBUFFERED": "1", "NO_PROXY": "*", "no_proxy": "*"}

    def tail(self, num_bytes: int = 3000) -> str:
        """The end of what the head printed."""
        assert self._folder is not None
        with contextlib.suppress(OSError):
            return (self._folder / "head.log").read_bytes()[-num_bytes:].decode(errors="replace")
        return "(it wrote nothing)"

    def close(self) -> None:
        """Ends the head and whatever it left, and removes its files. Idempotent."""
        if self._process is not None:
            family = _descendants(self._process.pid)
            end_process(self._process, timeout_s=_STOP_TIMEOUT_S)
            _end_left_over(family)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def start_child(
    command: Sequence[str], *, environ: Mapping[str, str], stdout: Any, keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A child that a terminal's Ctrl-C does not reach and that ends when this process dies.

    Args:
        stdout: for what it prints, errors included.
        keep: open files that it keeps open as well.
    """
    return subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_death_signal(),
        pass_fds=keep,
    )


def end_process(process: subprocess.Popen[bytes], *, timeout_s: float) -> None:
    """SIGTERM by pid, and SIGKILL after `timeout_s`."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        log.warning("process %d did not end within %.0f s and is killed", process.pid, timeout_s)
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Distinct ports that nobody listens on now, free but not reserved, and none that Linux might
    give to a connection (32768 and up) before Ray listens on it."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(range(*_PORTS), k=_PORTS[1] - _PORTS[0]):
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("", port))
                found.append(port)
            if len(found) == count:
                return found
    raise HeadError(f"{count} free ports are needed, and {_PORTS} hold {len(found)}; end others")


def _death_signal() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    # Loaded before the fork: after it, only async-safe calls are allowed.
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask_for_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be watched
            os._exit(1)

    return ask_for_signal


def _head_environ(environ: Mapping[str, str], token: str | None) -> dict[str, str]:
    """Without settings that would lead to another cluster; REDIS_URL passes on by inheritance.

    It must not be part of the job's runtime environment, which the dashboard shows.
    """
    kept = {key: value for key, value in environ.items() if not key.startswith("RAY_")}
    # Always one or the other: left to itself, Ray decides by what an earlier one wrote into HOME.
    mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else None
    return {
        **kept,
        **(mode or {"RAY_AUTH_MODE": "disabled"}),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray's own patience of some seconds is too short on a machine that is busy.
        "RAY_raylet_start_wait_time_s": "100",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
    }


def loopback_address() -> str:
    """An address of this machine alone that another node hardly has."""
    # 127.0.0.1 itself would be replaced by the host's outer address. macOS has only that one.
    if sys.platform != "linux":
        return "127.0.0.1"
    return f"127.0.0.{random.SystemRandom().randint(2, 254)}"


def _short_tmp() -> Path:
    return _SHORT_TMP if os.access(_SHORT_TMP, os.W_OK) else Path(tempfile.gettempdir())


def _claimed(folder: Path) -> int | None:
    """Locks a session's folder until this process ends, however it ends.

    A lock and no pid: a container may share the folder and not the process table. The file gets
    its name when it is locked, so that nobody ever finds it free by chance.
    """
    nameless = folder / f"{_LOCK}.new"
    lock = _locked(nameless)
    nameless.rename(folder / _LOCK)
    return lock


def _locked(path: Path) -> int | None:
    """An open, locked file; None: another process holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _sweep(folder: Path) -> None:
    """Removes what runners left behind that were killed."""
    for session in folder.glob(f"{_PREFIX}*"):
        if not (session / _LOCK).is_file():
            continue
        with contextlib.suppress(OSError):
            lock = _locked(session / _LOCK)
            if lock is not None:
                shutil.rmtree(session, ignore_errors=True)
                os.close(lock)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _alive(processes: Sequence[psutil.Process]) -> Iterator[psutil.Process]:
    # is_running compares start times, so that a pid in new hands is left alone.
    return (each for each in processes if each.is_running())


def _end_left_over(family: Sequence[psutil.Process]) -> None:
    """Ends the processes of the head that outlived it."""
    _, left = psutil.wait_procs(list(_alive(family)), timeout=5)
    for each in _alive(left):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    _, left = psutil.wait_procs(left, timeout=5)
    for each in _alive(left):
        log.warning("process %d (%s) is killed", each.pid, each.name())
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(left, timeout=5)
