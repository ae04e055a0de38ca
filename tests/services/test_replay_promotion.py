"""A server whose place another one takes, as when a replica is promoted behind one address."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from buffer.connection import connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayUnavailable
from buffer.redis_replay import RedisReplay
from buffer.replay_settings import ReplaySettings

pytestmark = pytest.mark.redis


class Address:
    """A port that leads to one server, and new connections later to another."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inside, _ = self._listener.accept()
                outside = socket.create_connection(("127.0.0.1", self.target))
                for pair in ((inside, outside), (outside, inside)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        end.close()


@pytest.fixture
def two_servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    with EmbeddedServer(transport="tcp") as old, EmbeddedServer(transport="tcp") as new:
        with connect(new.url, timeout_s=5) as admin:
            admin.config_set("requirepass", urlsplit(old.url).password or "")
        yield old, new


@pytest.mark.parametrize("outage_s", [0.0, 10.0])
def test_whoever_asks_again_asks_the_server_that_the_address_leads_to_by_then(
    two_servers: tuple[EmbeddedServer, EmbeddedServer], outage_s: float
) -> None:
    ports = [urlsplit(server.url).port or 0 for server in two_servers]
    with contextlib.closing(Address(ports[0])) as address, contextlib.ExitStack() as stack:

        def replay_at(port: int) -> RedisReplay:
            url = two_servers[0].url.replace(str(ports[0]), str(port))
            settings = ReplaySettings(url=url, run="moved", capacity_records=9, outage_s=outage_s)
            return stack.enter_context(contextlib.closing(RedisReplay.connect(settings)))

        promoted, replay = replay_at(ports[1]), replay_at(address.port)
        with connect(two_servers[0].url, timeout_s=5) as admin:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        if outage_s == 0:
            with pytest.raises(ReplayUnavailable, match="takes no writes now"):
                replay.admit(limit=3, policy_version=0)
        address.target = ports[1]
        replay.admit(limit=3, policy_version=0)
        assert promoted.counters().admitted == 3
