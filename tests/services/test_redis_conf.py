"""The shipped Redis config, on real servers: by TLS for one user, and for nobody else.

The embedded server cannot serve TLS: it gets a plain port, and reads every other line of the file.
A server with TLS on PATH reads all of them.
"""

import hashlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from buffer.connection import check_connection, connect
from buffer.embedded import find_server
from buffer.errors import ReplayAccessDenied, ReplayError, ReplayUnavailable
from buffer.records import Record, Scores
from buffer.redis_replay import RedisReplay, ReplaySettings
from deploy.erase import erase
from tests.services.tls_files import write_tls_files

pytestmark = pytest.mark.redis
SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "redis"
PAGE = SHIPPED.parent / "cluster.md"
PASSWORD = "a-password"
_STARTED_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def with_tls() -> str | None:
    """A server on PATH that can serve TLS: it misses the certificate, where others miss TLS."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is None:
            continue
        asked = [found, "--port", "0", "--tls-port", str(free_port())]
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout
        if "No tls-cert-file" in told:
            return found
    return None


TLS_SERVER = with_tls()
needs_tls = pytest.mark.skipif(TLS_SERVER is None, reason="no Redis server with TLS on PATH")


def installed(folder: Path, port: int, *, password: str = PASSWORD) -> Path:
    """The shipped files below a folder, with its paths and port; the config's own path."""
    for part in ("tls", "acl", "data"):
        (folder / part).mkdir()
    write_tls_files(folder / "tls")
    acl = (SHIPPED / "users.acl").read_text()
    if password:
        acl = acl.replace("SHA256", hashlib.sha256(password.encode()).hexdigest())
    (folder / "acl" / "users.acl").write_text(acl)
    text = (SHIPPED / "redis.conf").read_text()
    for shipped, here in (
        ("/etc/fleetune", str(folder)),
        ("dir /data", f"dir {folder / 'data'}"),
        ("tls-port 6379", f"tls-port {port}"),
        ("bind *", "bind 127.0.0.1"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    config = folder / "redis.conf"
    config.write_text(text)
    return config


def without_tls(config: Path, port: int) -> Path:
    """The same with a plain port, for a server that is built without TLS."""
    lines = [line for line in config.read_text().splitlines() if not line.startswith("tls-")]
    lines[lines.index("port 0")] = f"port {port}"
    config.write_text("\n".join([*lines, ""]))
    return config


@contextmanager
def running(program: str | Path, config: Path, port: int) -> Iterator[None]:
    log = config.with_name("log")
    with log.open("wb") as output:
        process = subprocess.Popen([program, config], stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _STARTED_S
        while not answers(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(20)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    config = without_tls(installed(tmp_path_factory.mktemp("plain"), port), port)
    with running(find_server(), config, port):
        yield port


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    assert TLS_SERVER is not None
    port, folder = free_port(), tmp_path_factory.mktemp("tls")
    with running(TLS_SERVER, installed(folder, port), port):
        yield port, folder / "tls" / "ca.crt"


def work(url: str, group: list[Record], scores: Scores) -> None:
    """A group's way through the replay."""
    check_connection(url, timeout_s=3)
    replay = RedisReplay.connect(ReplaySettings(url=url, run="conf", capacity_records=9))
    replay.admit(limit=1, policy_version=0)
    assert replay.lease_ticket("sampler", lease_s=30) is not None
    replay.put_group(0, group)
    names = [r.record_id for r in replay.claim("s", max_records=9, block_s=0.1, lease_s=30)]
    assert replay.commit([(name, scores) for name in names]) == len(group)
    assert replay.read_latents([(names[0], 0)])[0] is not None
    replay.erase()
    replay.close()


def test_the_user_of_the_shipped_files_does_all_that_a_run_does(
    plain: int, make_group: Callable[..., list[Record]], scores: Callable[..., Scores]
) -> None:
    work(f"redis://fleetune:{PASSWORD}@127.0.0.1:{plain}/0", make_group(0), scores())


def test_the_user_of_the_shipped_files_may_erase_a_run(plain: int, tmp_path: Path) -> None:
    url = f"redis://fleetune:{PASSWORD}@127.0.0.1:{plain}/0"
    replay = RedisReplay.connect(ReplaySettings(url=url, run="over", capacity_records=9))
    replay.admit(limit=1, policy_version=0)
    replay.close()
    environ = {"REDIS_URL": url, "FLEETUNE_RUNS": str(tmp_path)}
    assert (erase("over", environ) > 0, erase("over", environ)) == (True, 0)


@pytest.mark.parametrize("who", ["", f":{PASSWORD}@", "fleetune:guessed@", "probe:x@"])
def test_nobody_else_can_begin_a_run(plain: int, who: str) -> None:
    with pytest.raises(ReplayAccessDenied):
        check_connection(f"redis://{who}127.0.0.1:{plain}/0", timeout_s=3)


def test_the_probe_can_ask_whether_the_server_answers(plain: int) -> None:
    client = connect(f"redis://probe:x@127.0.0.1:{plain}/0", timeout_s=3)
    assert client.ping()
    client.close()


def test_the_server_keeps_what_the_file_says(plain: int) -> None:
    client = connect(f"redis://fleetune:{PASSWORD}@127.0.0.1:{plain}/0", timeout_s=3)
    info = client.info()
    client.close()
    assert isinstance(info, dict)
    told = (info["maxmemory_policy"], info["maxmemory"], info["aof_enabled"])
    assert told == ("noeviction", 8 * 2**30, 1)


def test_a_server_refuses_the_acl_file_while_its_placeholder_is_in_it(tmp_path: Path) -> None:
    config = without_tls(installed(tmp_path, 0, password=""), free_port())
    done = subprocess.run([find_server(), config], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "users.acl" in done.stdout + done.stderr


def test_the_acl_file_gives_the_rights_that_the_page_names() -> None:
    (rule,) = (line for line in PAGE.read_text().splitlines() if line.startswith("ACL SETUSER"))
    shipped = (SHIPPED / "users.acl").read_text().splitlines()[2].split()
    assert set(rule.split()[5:]) <= set(shipped)
    assert {right for right in shipped if right.startswith("+")} <= set(rule.split())


@needs_tls
def test_a_run_works_over_tls_with_exactly_the_shipped_config(
    tls: tuple[int, Path], make_group: Callable[..., list[Record]], scores: Callable[..., Scores]
) -> None:
    port, authority = tls
    url = f"rediss://fleetune:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={authority}"
    work(url, make_group(0), scores())


@needs_tls
def test_a_client_without_tls_is_refused(tls: tuple[int, Path]) -> None:
    with pytest.raises(ReplayError):
        check_connection(f"redis://fleetune:{PASSWORD}@127.0.0.1:{tls[0]}/0", timeout_s=3)


@needs_tls
def test_a_client_that_does_not_know_the_authority_refuses_the_server(
    tls: tuple[int, Path],
) -> None:
    with pytest.raises(ReplayUnavailable, match="certificate"):
        check_connection(f"rediss://fleetune:{PASSWORD}@127.0.0.1:{tls[0]}/0", timeout_s=3)


@needs_tls
def test_a_wrong_password_over_tls_is_refused(tls: tuple[int, Path]) -> None:
    port, authority = tls
    url = f"rediss://fleetune:guessed@127.0.0.1:{port}/0?ssl_ca_certs={authority}"
    with pytest.raises(ReplayAccessDenied):
        check_connection(url, timeout_s=3)
