"""What a replay does when its server is away, full or refuses the client."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from buffer.connection import check_connection, connect
from buffer.embedded import EmbeddedServer
from buffer.errors import ReplayAccessDenied, ReplayFull, ReplayUnavailable
from buffer.records import START
from buffer.redis_replay import RedisReplay, ReplaySettings
from tests.services.replay_calls import (
    LEASE_S,
    MakeGroup,
    MakeScores,
    assert_balanced,
    claim,
    issue,
    put,
)

pytestmark = pytest.mark.redis


def test_an_outage_is_ridden_out(tmp_path: Path, make_group: MakeGroup, scores: MakeScores) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=20)
        replay = RedisReplay.connect(settings)
        put(replay, [make_group(0)])
        names = [record.record_id for record in claim(replay)]
        os.kill(server.pid, signal.SIGKILL)
        committing = threading.Thread(
            target=lambda: replay.commit([(name, scores()) for name in names])
        )
        committing.start()
        time.sleep(0.5)
        assert server.revive()
        committing.join()
        assert len(replay.tail(START, max_entries=9)) == 2
        assert_balanced(replay)
        replay.close()


def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=20)
        replay, client = RedisReplay.connect(settings), connect(server.url, timeout_s=5)
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        back = threading.Timer(0.5, client.execute_command, ["REPLICAOF", "NO", "ONE"])
        back.start()
        replay.admit(limit=1, policy_version=0)
        back.join()
        assert replay.counters().admitted == 1
        client.close()
        replay.close()


def test_an_outage_that_lasts_longer_is_an_error(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        settings = ReplaySettings(url=server.url, run="out", capacity_records=9, outage_s=0.5)
        replay = RedisReplay.connect(settings)
        os.kill(server.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(ReplayUnavailable):
            replay.counters()
        assert 0.5 < time.monotonic() - begun < 10
        replay.close()


def test_a_nearly_full_server_takes_commits_but_no_new_groups(
    make_group: MakeGroup, scores: MakeScores
) -> None:
    with EmbeddedServer() as server:
        settings = ReplaySettings(url=server.url, run="full", capacity_records=2)
        replay = RedisReplay.connect(settings)
        put(replay, [make_group(0)])
        issue(replay, 1)
        used = replay._link.client.info("memory")["used_memory"]
        replay._link.client.config_set("maxmemory", int(used / 0.91))
        with pytest.raises(ReplayFull, match="maxmemory"):
            replay.put_group(1, make_group(1))
        assert list(replay._link.client.scan_iter("*:record:staged:*")) == []
        assert replay.commit([(record.record_id, scores()) for record in claim(replay)]) == 2
        replay._link.client.config_set("maxmemory", 2 * used)
        assert replay.put_group(1, make_group(1))
        replay.close()


def test_nobody_at_the_url_is_unavailable() -> None:
    with pytest.raises(ReplayUnavailable, match=r"127\.0\.0\.1:1/"):
        check_connection("redis://127.0.0.1:1/0", timeout_s=1)


@pytest.mark.parametrize("step", ["lease", "put", "claim again", "commit", "fail"])
def test_a_full_server_refuses_a_step_and_nothing_of_it_happens(
    step: str, make_group: MakeGroup, scores: MakeScores
) -> None:
    with EmbeddedServer() as server:
        replay = RedisReplay.connect(ReplaySettings(url=server.url, run="full", capacity_records=2))
        put(replay, [make_group(0)])
        name = claim(replay)[0].record_id
        replay.admit(limit=3, policy_version=0)
        replay.lease_ticket("a", lease_s=LEASE_S)
        steps = {
            "lease": lambda: replay.lease_ticket("a", lease_s=LEASE_S),
            "put": lambda: replay.put_group(1, make_group(1)),
            "claim again": lambda: replay.claim("b", max_records=9, block_s=0, lease_s=0.001),
            "commit": lambda: replay.commit([(name, scores())]),
            "fail": lambda: replay.fail(name, "boom", retry=True),
        }
        time.sleep(0.01)  # the claims are now older than the lease of "claim again"
        before = replay.counters()
        replay._link.client.config_set("maxmemory", "1")
        with pytest.raises(ReplayFull, match="maxmemory"):
            steps[step]()
        assert replay.counters() == before
        replay._link.client.config_set("maxmemory", "0")
        steps[step]()
        assert replay.counters() != before
        replay.close()


def test_a_wrong_password_is_denied_and_not_shown() -> None:
    with EmbeddedServer(transport="tcp") as server:
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied) as caught:
            check_connection(f"redis://:guess-me@{address}", timeout_s=2)
    assert "guess-me" not in str(caught.value)


def test_a_user_without_scripts_is_denied_before_the_run() -> None:
    with EmbeddedServer(transport="tcp") as server:
        admin = connect(server.url, timeout_s=2)
        admin.acl_setuser("weak", enabled=True, passwords=["+pw"], commands=["+ping", "+info"])
        admin.close()
        address = server.url.partition("@")[2]
        with pytest.raises(ReplayAccessDenied, match="eval"):
            check_connection(f"redis://weak:pw@{address}", timeout_s=2)
