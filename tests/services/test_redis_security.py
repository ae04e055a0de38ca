"""TLS, users and passwords: what a run accepts, what it refuses, and what it never shows."""

import datetime
import ipaddress
import logging
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from buffer.connection import check_connection, connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayAccessDenied, ReplayUnavailable
from buffer.records import Record, Scores
from buffer.redis_replay import RedisReplay, ReplaySettings

pytestmark = pytest.mark.redis
PASSWORD = "s3cret-pass"
PAGE = Path(__file__).resolve().parents[2] / "deploy" / "cluster.md"


def documented_rights() -> list[str]:
    """The words of the page's ACL rule behind its password."""
    [rule] = re.findall(r"^ACL SETUSER fleetune on >PASSWORD (.*)$", PAGE.read_text(), re.M)
    return rule.split()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(transport="tcp") as running:
        admin = connect(running.url, timeout_s=5)
        rule = ["ACL", "SETUSER", "trainer", "on", f">{PASSWORD}", *documented_rights()]
        admin.execute_command(*rule)
        admin.close()
        yield running


@pytest.fixture(scope="module")
def url(server: EmbeddedServer) -> str:
    """Of the user that may do no more than a run needs."""
    return f"redis://trainer:{PASSWORD}@127.0.0.1:{urlsplit(server.url).port}/0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with a key and a certificate for 127.0.0.1 that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(scope="module")
def tls_port(server: EmbeddedServer, certificate: Path) -> Iterator[int]:
    """A TLS terminator before the server, as the embedded one is built without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    target = ("127.0.0.1", urlsplit(server.url).port or 0)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=_terminate, args=(listener, context, target), daemon=True)
        thread.start()
        yield listener.getsockname()[1]


def _terminate(listener: socket.socket, context: ssl.SSLContext, target: tuple[str, int]) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_relay, args=(plain, context, target), daemon=True).start()


def _relay(plain: socket.socket, context: ssl.SSLContext, target: tuple[str, int]) -> None:
    """One connection, until either side ends it."""
    with (
        closing(plain),
        suppress(OSError),
        context.wrap_socket(plain, server_side=True) as inside,
        socket.create_connection(target) as outside,
    ):
        back = threading.Thread(target=_pump, args=(outside, inside), daemon=True)
        back.start()
        _pump(inside, outside)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def whole_life(url: str, run: str, group: list[Record], scores: Scores) -> None:
    """Everything that a run does with its replay."""
    check_connection(url)
    replay = RedisReplay.connect(ReplaySettings(url=url, run=run, capacity_records=1))
    replay.admit(limit=1, policy_version=0)
    ticket = replay.lease_ticket("sampler", lease_s=30)
    assert ticket is not None
    replay.renew_ticket(ticket, lease_s=30)
    replay.put_group(0, group)
    names = [r.record_id for r in replay.claim("s", max_records=9, block_s=0.1, lease_s=30)]
    replay.renew_claims("s", names)
    replay.unclaim(names[:1])
    replay.claim("s", max_records=9, block_s=0.1, lease_s=0.001)
    replay.fail(names[0], "boom", retry=False)
    replay.release(names[:1])
    assert replay.commit([(name, scores) for name in names]) == len(names)
    replay.set_priorities({names[1]: 2.0}, generation=1)
    assert replay.priorities() == {names[1]: 2.0}
    assert replay.read_latents([(names[1], 0)])[0] is not None
    assert len(replay.tail("0-0", max_entries=9)) == 4
    assert replay.quarantined(9) == []
    assert replay.consume(1) == 1
    replay.skip_to(5)
    assert replay.counters().committed == len(names)
    replay.erase()
    replay.close()


def test_a_user_with_the_rights_of_the_documentation_can_do_all_that_a_run_does(
    url: str, make_group: Callable[..., list[Record]], scores: Callable[..., Scores]
) -> None:
    whole_life(url, "acl", make_group(0), scores())


def test_that_user_reaches_no_other_keys(url: str) -> None:
    client = connect(url, timeout_s=5)
    with pytest.raises(Exception, match=r"(?i)permission"):
        client.set("other", "1")
    client.close()


def test_a_run_works_over_tls(
    tls_port: int,
    certificate: Path,
    make_group: Callable[..., list[Record]],
    scores: Callable[..., Scores],
) -> None:
    url = f"rediss://trainer:{PASSWORD}@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}"
    whole_life(url, "tls", make_group(0), scores())


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_port: int) -> None:
    with pytest.raises(ReplayUnavailable, match="certificate") as caught:
        check_connection(f"rediss://trainer:{PASSWORD}@127.0.0.1:{tls_port}/0", timeout_s=3)
    assert PASSWORD not in str(caught.value)


def test_a_wrong_password_over_tls_is_denied_and_not_shown(
    tls_port: int, certificate: Path
) -> None:
    url = f"rediss://trainer:guess-me@127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}"
    with pytest.raises(ReplayAccessDenied) as caught:
        check_connection(url, timeout_s=3)
    assert "guess-me" not in str(caught.value)


def test_the_password_is_in_no_text_of_a_replay(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    settings = ReplaySettings(url=url, run="masked", capacity_records=1)
    replay = RedisReplay.connect(settings)
    texts = [repr(replay), str(replay), repr(settings), str(settings), caplog.text]
    replay.close()
    assert not [text for text in texts if PASSWORD in text]


def test_the_password_is_in_no_error_of_an_outage() -> None:
    url = f"redis://trainer:{PASSWORD}@127.0.0.1:1/0"
    replay = RedisReplay(ReplaySettings(url=url, run="gone", capacity_records=1, outage_s=0.2))
    with pytest.raises(ReplayUnavailable) as caught:
        replay.counters()
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
