"""The embedded server: what it keeps, what it hides, and that it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buffer.connection import Client, check_connection, connect
from buffer.embedded import EmbeddedServer
from buffer.errors import EmbeddedServerError, ReplayAccessDenied
from buffer.urls import check_url, masked, urls_in

pytestmark = pytest.mark.redis


def client_of(server: EmbeddedServer) -> Client:
    return connect(server.url, timeout_s=5)


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def own_temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder that only this test's servers use; the name of a socket must be short."""
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_a_started_server_is_fit_for_a_run(transport: str) -> None:
    with EmbeddedServer(transport=transport) as server:  # type: ignore[arg-type]
        assert check_connection(server.url, timeout_s=5)


def test_data_come_back_after_a_stop(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data") as server, client_of(server) as client:
        client.set("key", "kept")
    with EmbeddedServer(tmp_path / "data") as server, client_of(server) as client:
        assert client.get("key") == b"kept"


def test_data_come_back_after_the_server_was_killed(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "data").start()
    with client_of(server) as client:
        client.set("key", "kept")
        assert wait_for(lambda: client.info("persistence")["aof_pending_bio_fsync"] == 0)
    time.sleep(1.2)  # everysec
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with EmbeddedServer(tmp_path / "data") as server, client_of(server) as client:
        assert client.get("key") == b"kept"


def test_a_server_that_is_down_comes_back_though_another_start_swept_its_folder(
    own_temp: Path,
) -> None:
    with EmbeddedServer(own_temp / "data") as server:
        socket = Path(server.url.removeprefix("unix://"))
        with client_of(server) as client:
            client.set("key", "kept")
        time.sleep(1.2)  # everysec
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        # Until all its threads are gone: the last one holds the lock of the folder.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with EmbeddedServer():
            assert not socket.parent.exists()
        assert server.revive()
        with client_of(server) as client:
            assert client.get("key") == b"kept"


def test_a_folder_name_may_hold_spaces_and_quotes(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / 'my "run" é\\') as server, client_of(server) as client:
        assert str(client.config_get("dir")["dir"]).endswith('my "run" é\\')


def test_a_stop_leaves_no_process_and_no_file(own_temp: Path) -> None:
    with EmbeddedServer() as server:
        pid = server.pid
    assert not is_alive(pid)
    assert list(own_temp.iterdir()) == []


def test_a_server_dies_with_its_parent_and_the_next_start_removes_its_folder(
    own_temp: Path,
) -> None:
    program = (
        "import os, signal; from buffer.embedded import EmbeddedServer\n"
        "server = EmbeddedServer().start(); print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(killed.stdout)
    assert wait_for(lambda: not is_alive(pid))

    def next_start_cleans() -> bool:
        with EmbeddedServer():
            return len(list(own_temp.iterdir())) == 1

    # Threads of the dead server may hold its lock for an instant after its process has ended.
    assert wait_for(next_start_cleans)


def test_a_start_does_not_remove_the_folder_of_a_running_server(own_temp: Path) -> None:
    with EmbeddedServer() as first, EmbeddedServer():
        assert check_connection(first.url, timeout_s=5)


def test_two_servers_cannot_share_a_folder(tmp_path: Path) -> None:
    second = EmbeddedServer(tmp_path / "data", start_s=0.2)
    with (
        EmbeddedServer(tmp_path / "data"),
        pytest.raises(EmbeddedServerError, match="another embedded server uses"),
    ):
        second.start()


def test_a_server_that_cannot_start_says_why(own_temp: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="argument must be a memory value"):
        EmbeddedServer(maxmemory_bytes=-1).start()
    assert list(own_temp.iterdir()) == []


def test_a_stopped_server_has_no_url() -> None:
    server = EmbeddedServer()
    with pytest.raises(EmbeddedServerError, match="not running"):
        _ = server.url


def test_the_loopback_port_needs_the_password() -> None:
    with EmbeddedServer(transport="tcp") as server:
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied):
            check_connection(f"redis://{address}", timeout_s=2)


def test_the_password_is_not_in_the_process_list() -> None:
    with EmbeddedServer(transport="tcp") as server:
        password = server.url.partition(":@")[0].rpartition(":")[2].partition("@")[0]
        command = Path(f"/proc/{server.pid}/cmdline")
        if not command.exists():
            pytest.skip("no /proc on this system")
        assert password.encode() not in command.read_bytes()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("rediss://user:secret@host/0", "rediss://user:***@host/0"),
        ("redis://user:se/cr@et@host/0", "redis://user:***@host/0"),
        ("unix:///run/r.sock?db=1&password=secret", "unix:///run/r.sock?db=1&password=***"),
        ("redis://:a@h redis://me:b@i/1", "redis://:***@h redis://me:***@i/1"),
        ("redis://:two words@h", "redis://:***@h"),
        ("redis://:a@h,redis://:b@i", "redis://:***@i"),
        ("unix:///my folder/r.sock", "unix:///my folder/r.sock"),
    ],
)
def test_a_masked_url_shows_no_password(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@host",
        "redis://:secret/word@host:port/0",
        "redis://host redis://:secret@host:port/0",
        "redis://:secret@a,redis://:secret@b",
        "redis://:secret@a:6379/0 b:6379/0",
    ],
)
def test_a_bad_url_is_an_error_that_shows_no_password(url: str) -> None:
    with pytest.raises(ValueError, match="must look like") as caught:
        list(map(check_url, urls_in(url)))
    assert "secret" not in str(caught.value)
