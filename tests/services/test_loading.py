"""An embedded server with much data, which answers that it loads them for long."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from buffer import embedded
from buffer.embedded import EmbeddedServer, new_socket_url
from buffer.errors import EmbeddedServerError
from deploy.run.replay_servers import ReplayServerHost

PROGRAM = Path(__file__).with_name("loading_server.py")


@pytest.fixture
def loads_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Has every embedded server of the test be one that loads for so many seconds."""

    def set_up(seconds: float) -> None:
        program = tmp_path / "server"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAM} "$@"\n')
        program.chmod(0o700)
        monkeypatch.setenv("FLEETUNE_TEST_LOADS_S", str(seconds))
        monkeypatch.setattr(embedded, "find_server", lambda: program)

    return set_up


def test_a_server_that_loads_its_data_is_waited_for(
    loads_for: Callable[[float], None], tmp_path: Path
) -> None:
    loads_for(8.0)
    begun = time.monotonic()
    with EmbeddedServer(tmp_path / "data", start_s=3.0) as server:
        assert time.monotonic() - begun > 6.0
        assert not server.is_loading


def test_a_server_that_ends_while_it_loads_is_not_waited_for(
    loads_for: Callable[[float], None], tmp_path: Path
) -> None:
    loads_for(-2.0)
    with pytest.raises(EmbeddedServerError, match="did not start"):
        EmbeddedServer(tmp_path / "data", start_s=60.0).start()


def test_who_waits_for_its_host_waits_as_long(
    loads_for: Callable[[float], None], tmp_path: Path
) -> None:
    loads_for(8.0)
    host = ReplayServerHost(tmp_path / "data", new_socket_url(), append_only=True)
    try:
        host.wait_until_running(3.0)
    finally:
        host.stop()
